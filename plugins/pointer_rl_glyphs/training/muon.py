"""Muon (Jordan et al., 2024: kellerjordan.github.io/posts/muon) in float32.

torch.optim.Muon orthogonalises in bfloat16, which CPUs emulate; it would take most of a training
step's time. Here matrices of the same shape are orthogonalised together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum with decoupled weight decay, for matrices only."""

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    gradient = parameter.grad
                    assert gradient is not None
                    state["momentum"].lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(state["momentum"], group["momentum"]))
                step = orthogonalise(torch.stack(updates)) * max(1.0, rows / columns) ** 0.5
                for parameter, each in zip(parameters, step, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(each, alpha=-group["lr"])


def orthogonalise(matrices_NRC: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Approximately the nearest semi-orthogonal matrices: singular values become 0.7 to 1.2.

    matrices_NRC: [N, rows, columns]. Quintic Newton-Schulz iteration with Jordan's coefficients.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices_NRC if matrices_NRC.shape[-2] <= matrices_NRC.shape[-1] else matrices_NRC.mT
    norm: torch.Tensor = torch.linalg.matrix_norm(x, keepdim=True)
    x = x / (norm + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if matrices_NRC.shape[-2] <= matrices_NRC.shape[-1] else x.mT
