"""Let a torchvision that was built for CUDA be imported on a CPU, for its Python functions."""

import importlib.util
from pathlib import Path

DECLARE = """\
for _name in ("nms", "qnms"):  # declared by pointer-rl's tests/with_vllm/setup.sh
    torch.library.define(
        f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    )


"""

[folder] = importlib.util.find_spec("torchvision").submodule_search_locations
path = Path(folder) / "_meta_registrations.py"
source = path.read_text(encoding="utf-8")
first = source.index("@torch.library.register_fake")
path.write_text(source[:first] + DECLARE + source[first:], encoding="utf-8")
