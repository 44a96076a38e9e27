"use strict";
(async () => {
  // Plotly comes packed. Its text becomes a script of this page: nothing is asked for.
  const unpacked = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };
  if (!("DecompressionStream" in globalThis)) {
    document.querySelector("main").insertAdjacentHTML(
      "afterbegin", '<p class="note">The figures need a browser of 2023 or newer; the tables do without.</p>');
    return;
  }
  const library = document.createElement("script");
  library.textContent = await unpacked(document.getElementById("plotly").textContent);
  document.head.append(library);

  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const plots = [...document.querySelectorAll(".plot")];
  // Dragging zooms with a mouse; on a touch screen it must scroll the page.
  const mouse = matchMedia("(pointer: fine)").matches;
  const config = { displayModeBar: false, responsive: true, doubleClick: "reset" };

  /** The figure with the values of the CSS variables that it names. */
  const painted = (value, style) => {
    if (typeof value === "string") {
      return value.startsWith("var(--") ? style.getPropertyValue(value.slice(4, -1)).trim() : value;
    }
    if (Array.isArray(value)) return value.map((inner) => painted(inner, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, painted(inner, style)]));
  };

  const draw = (plot, width) => {
    const figure = painted(figures[plot.dataset.figure], getComputedStyle(root));
    const hidden = new Set(
      [...plot.closest(".panel").querySelectorAll('.legend [aria-pressed="false"]')].map((b) => b.dataset.name),
    );
    for (const trace of figure.data) {
      trace.visible = !hidden.has(trace.name);
      // On a narrow screen names would run into one another: the ringed points keep theirs.
      if (plot.clientWidth < 600 && trace.mode === "markers+text" && !trace.marker.line.width) trace.mode = "markers";
    }
    figure.layout.dragmode = mouse ? "zoom" : false;
    Object.assign(figure.layout, width ? { width } : { autosize: true });
    plot.dataset.drawn = "yes";
    return Plotly.react(plot, figure.data, figure.layout, config);
  };
  const redraw = () => {
    for (const plot of plots) if (plot.dataset.drawn && plot.offsetParent !== null) draw(plot);
      else delete plot.dataset.drawn;
  };

  // A page of many runs has hundreds of figures: each is drawn when it is about to be seen.
  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting && !entry.target.dataset.drawn) draw(entry.target);
      }
    },
    { rootMargin: "600px" },
  );
  plots.forEach((plot) => seen.observe(plot));

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") === "false" ? "true" : "false");
      for (const plot of button.closest(".panel").querySelectorAll(".plot")) if (plot.dataset.drawn) draw(plot);
    });
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  const printed = () => {
    root.classList.add("paper");
    for (const plot of plots) if (plot.offsetParent !== null) draw(plot, 660);
  };
  addEventListener("beforeprint", printed);
  addEventListener("afterprint", () => {
    root.classList.remove("paper");
    // A width once set stays: only a new start lets a figure follow its box again.
    plots.forEach((plot) => Plotly.purge(plot));
    redraw();
  });
})();
