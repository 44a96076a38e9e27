"""The ``partition`` option, typed: ``{ kind = "dirichlet", alpha = 0.5 }``. A model per kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveFloat, PositiveInt

_REPLACE = "Share out a pool in which samples come again, so that there may be more devices than samples."


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Iid(_Spec):
    """Equal shares of shuffled data."""

    kind: Literal["iid"] = "iid"
    replace: bool = Field(default=False, description=_REPLACE)


class Dirichlet(_Spec):
    """Each class is shared out in proportions drawn from Dirichlet(alpha); a small alpha is a great skew."""

    kind: Literal["dirichlet"] = "dirichlet"
    alpha: PositiveFloat = 0.5
    min_samples: PositiveInt = Field(default=2, description="Drawn again until each device has as many.")
    replace: bool = Field(default=False, description=_REPLACE)


class Shards(_Spec):
    """Sorted by label and cut into equal shards, of which each device gets ``per_device`` at random.

    Fewer than devices x per_device samples are left over.
    """

    kind: Literal["shards"] = "shards"
    per_device: PositiveInt = 2
    replace: bool = Field(default=False, description=_REPLACE)


class Pathological(_Spec):
    """Each device sees ``classes`` classes, and shares them with the others that see them.

    With fewer devices than classes, classes may stay unused.
    """

    kind: Literal["pathological"] = "pathological"
    classes: PositiveInt = 2
    replace: bool = Field(default=False, description=_REPLACE)


class Size(_Spec):
    """IID shares whose sizes grow with the device's number i: as i, i squared or e to the i."""

    kind: Literal["size"] = "size"
    skew: Literal["linear", "square", "exponential"] = "linear"
    replace: bool = Field(default=False, description=_REPLACE)


class Domains(_Spec):
    """Device i sees domain i modulo the number of domains; devices of one domain share it out, disjointly.

    With ``rotate``, each angle (degrees, counter-clockwise) makes a domain out of ``samples`` training images of its
    own (0: as many as there are), and every test image is seen at every angle.
    """

    kind: Literal["domains"] = "domains"
    rotate: tuple[FiniteFloat, ...] = ()
    samples: Annotated[int, Field(ge=0)] = 0


class Column(_Spec):
    """Natural ids: all samples of an id stay together. In their sorted order, id k goes to device k modulo devices.

    With ``largest``, only so many ids take part, those with the most samples, and the others' samples are left out.
    """

    kind: Literal["column"] = "column"
    name: str = Field(default="id_train", min_length=1)
    largest: Annotated[int, Field(ge=0)] = 0


class Files(_Spec):
    """An npz file per device, in the sorted order of their names: x and y, and x_test and y_test where there are.

    The files replace the training data of the source; its test data serve where the files hold none.
    """

    kind: Literal["files"] = "files"
    files: str = Field(min_length=1, description='Such as "shares/device-*.npz"; ~ and $VARIABLES are expanded.')


PartitionSpec = Annotated[
    Iid | Dirichlet | Shards | Pathological | Size | Domains | Column | Files, Field(discriminator="kind")
]
"""What ``[data] partition`` holds; a pydantic field of this type validates it."""


def column_of(spec: PartitionSpec) -> str | None:
    """The column of natural ids that the source must load for this partition, if any."""
    return spec.name if isinstance(spec, Column) else None
