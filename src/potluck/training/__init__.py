"""What a device does with its net and its data: training, evaluation, and what they cost."""
