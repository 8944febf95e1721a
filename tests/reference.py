"""The methods in plain float64 NumPy, written from the papers' formulas and from nothing else.

Parameters are one flat vector, `loss(theta)` is a float and `grad(theta)` a vector. The formulas
stand unguarded, as printed: use them where gradients do not vanish and v_0, v_1 span a plane.
Equation numbers are those of the XSAM paper.
"""

from collections.abc import Callable, Sequence

import numpy as np

Vector = np.ndarray
Loss = Callable[[Vector], float]
Grad = Callable[[Vector], Vector]

SCALES = ("last", "first", "mean", "max", "slope", "slope_max")


def unit(u: Vector) -> Vector:
    """Direction u / ||u||, as in equation 5."""
    return u / np.linalg.norm(u)


def ascent(theta: Vector, grad: Grad, rhos: Sequence[float]) -> tuple[Vector, list[Vector]]:
    """Algorithm 1, lines 2-7: theta_k and [g_0, ..., g_k]; rho_i is the length of one step."""
    point, gradients = theta, [grad(theta)]
    for rho in rhos:
        point = point + rho * unit(gradients[-1])
        gradients.append(grad(point))
    return point, gradients


def sam_gradient(theta: Vector, grad: Grad, rhos: Sequence[float]) -> Vector:
    """Equation 4: SAM descends along g_k."""
    return ascent(theta, grad, rhos)[1][-1]


def angle(v0: Vector, v1: Vector) -> float:
    """Algorithm 1, line 9: psi = arccos(v_0 . v_1) of two unit vectors."""
    # Round-off can push the cosine of nearly parallel vectors past 1.
    return float(np.arccos(np.clip(v0 @ v1, -1.0, 1.0)))


def slerp(alpha: float, v0: Vector, v1: Vector) -> Vector:
    """Equation 6: v(alpha), the unit vector alpha psi away from v_0 on the way to v_1."""
    psi = angle(v0, v1)
    return (np.sin((1 - alpha) * psi) * v0 + np.sin(alpha * psi) * v1) / np.sin(psi)


def scale_of(
    name: str,
    theta: Vector,
    theta_k: Vector,
    gradients: Sequence[Vector],
    loss: Loss,
    rho_max: float | None = None,
    v: Vector | None = None,
) -> float:
    """Appendix F: the length of the update; the two slopes are signed."""
    norms = [np.linalg.norm(g) for g in gradients]
    if name == "last":
        return float(norms[-1])
    if name == "first":
        return float(norms[0])
    if name == "mean":
        return float(sum(norms) / len(norms))
    if name == "max":
        return float(max(norms))
    if name == "slope":
        return float((loss(theta_k) - loss(theta)) / np.linalg.norm(theta_k - theta))
    if name == "slope_max":
        return float((loss(theta + rho_max * v) - loss(theta)) / rho_max)
    raise ValueError(f"{name!r} is none of {SCALES}")


def slerp_sam_gradient(
    theta: Vector,
    loss: Loss,
    grad: Grad,
    rhos: Sequence[float],
    alpha: float,
    scale: str = "last",
    between: str = "displacement",
    rho_max: float | None = None,
) -> Vector:
    """Equations 5 and 6 at a fixed alpha; between="first" is v_0 = g_0 / ||g_0|| (figure 3c)."""
    theta_k, gradients = ascent(theta, grad, rhos)
    v0 = unit({"displacement": theta_k - theta, "first": gradients[0]}[between])
    v = slerp(alpha, v0, unit(gradients[-1]))
    return v * scale_of(scale, theta, theta_k, gradients, loss, rho_max, v)


class Xsam:
    """Algorithm 1 without its learning rate; `step` returns the vector that line 16 subtracts."""

    def __init__(
        self,
        rhos: Sequence[float],
        rho_max: float,
        probe_every: int = 1,
        alpha_max: float = 2.0,
        num_alphas: int = 21,
        scale: str = "last",
    ) -> None:
        self.rhos, self.rho_max, self.probe_every, self.scale = rhos, rho_max, probe_every, scale
        self.alphas = np.linspace(0.0, alpha_max, num_alphas)
        self.t, self.alpha, self.psi = 0, 1.0, 0.0
        # Kept so that a test can see how clearly the winner of the last probe won.
        self.probe_losses = np.zeros(num_alphas)

    def step(self, theta: Vector, loss: Loss, grad: Grad) -> Vector:
        """Algorithm 1, lines 2-16: v(alpha*) times the scale (||g_k|| by default)."""
        theta_k, gradients = ascent(theta, grad, self.rhos)
        v0, v1 = unit(theta_k - theta), unit(gradients[-1])
        self.psi = angle(v0, v1)
        if self.t % self.probe_every == 0:
            self.probe_losses = np.array(
                [loss(theta + self.rho_max * slerp(alpha, v0, v1)) for alpha in self.alphas]
            )
            self.alpha = float(self.alphas[np.argmax(self.probe_losses)])
        self.t += 1
        v = slerp(self.alpha, v0, v1)
        return v * scale_of(self.scale, theta, theta_k, gradients, loss, self.rho_max, v)


def momentum_sgd(
    theta0: Vector, gradient_of_step: Grad, learning_rate: float, momentum: float, num_steps: int
) -> Vector:
    """Heavy ball as in optax.sgd: m = momentum m + g, theta = theta - learning_rate m."""
    theta, m = theta0, np.zeros_like(theta0)
    for _ in range(num_steps):
        m = momentum * m + gradient_of_step(theta)
        theta = theta - learning_rate * m
    return theta
