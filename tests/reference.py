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
Perturbation = Callable[[Vector, Vector], Vector]  # (theta_i, g_i) to theta_{i+1} - theta_i
Route = Sequence[float | Perturbation]

SCALES = ("last", "first", "mean", "max", "slope", "slope_max")


def unit(u: Vector) -> Vector:
    """Direction u / ||u||, as in equation 5."""
    return u / np.linalg.norm(u)


def ascent(
    theta: Vector,
    grad: Grad,
    rhos: Route | Callable[[Vector], Route],
    first: Vector | None = None,
) -> tuple[Vector, list[Vector]]:
    """Algorithm 1, lines 2-7: theta_k and [g_0, ..., g_k]. rho_i is the length of one step.

    A perturbation in place of rho_i is the whole step. An ascent with a memory is a function of
    g_0, called once in a training step, that returns the steps. `first` stands in for g_0.
    """
    point, gradients = theta, [grad(theta) if first is None else first]
    for rho in rhos(gradients[0]) if callable(rhos) else rhos:
        g = gradients[-1]
        point = point + (rho(point, g) if callable(rho) else rho * unit(g))
        gradients.append(grad(point))
    return point, gradients


def sam_gradient(
    theta: Vector,
    grad: Grad,
    rhos: Route | Callable[[Vector], Route],
    first: Vector | None = None,
) -> Vector:
    """Equation 4: SAM descends along g_k."""
    return ascent(theta, grad, rhos, first)[1][-1]


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
    """Appendix F: the length of the update. The two slopes are signed."""
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
    """Equations 5 and 6 at a fixed alpha. between="first" is v_0 = g_0 / ||g_0|| (figure 3c)."""
    theta_k, gradients = ascent(theta, grad, rhos)
    v0 = unit({"displacement": theta_k - theta, "first": gradients[0]}[between])
    v = slerp(alpha, v0, unit(gradients[-1]))
    return v * scale_of(scale, theta, theta_k, gradients, loss, rho_max, v)


class Xsam:
    """Algorithm 1 without its learning rate. `step` returns the vector that line 16 subtracts."""

    def __init__(
        self,
        rhos: Route | Callable[[Vector], Route],
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


# m-sharpness (Foret et al. 2021, section 4.1): one perturbation per group of examples.
# `losses` and `grads` are lists of functions, one for each group.


def mean_over_groups(
    step: Callable[..., Vector], theta: Vector, losses: Sequence[Loss], grads: Sequence[Grad]
) -> Vector:
    """The mean of the results of a method without state on each group."""
    return np.mean([step(theta, *group) for group in zip(losses, grads, strict=True)], axis=0)


class FriendlySamOfGroups:
    """F-SAM, each group with its own direction, and the average of the mean gradient."""

    def __init__(self, rho: float, decay: float = 0.9, sigma: float = 1.0) -> None:
        self.rho, self.decay, self.sigma, self.m = rho, decay, sigma, 0.0

    def step(self, theta: Vector, losses: Sequence[Loss], grads: Sequence[Grad]) -> Vector:
        """Algorithm 1, lines 4-9, for each group."""
        results = []
        for grad in grads:
            g = grad(theta)
            d = g - self.sigma * (self.decay * self.m + (1 - self.decay) * g)
            results.append(grad(theta + self.rho * unit(d)))
        mean_gradient = np.mean([grad(theta) for grad in grads], axis=0)
        self.m = self.decay * self.m + (1 - self.decay) * mean_gradient
        return np.mean(results, axis=0)


class XsamOfGroups:
    """XSAM with a plane for each group, and one alpha: the maximum of the mean of their losses."""

    def __init__(self, rhos: Route, rho_max: float, probe_every: int, num_alphas: int) -> None:
        self.rhos, self.rho_max, self.probe_every = rhos, rho_max, probe_every
        self.alphas = np.linspace(0.0, 2.0, num_alphas)
        self.t, self.alpha, self.psi = 0, 1.0, 0.0

    def step(self, theta: Vector, losses: Sequence[Loss], grads: Sequence[Grad]) -> Vector:
        """Algorithm 1, lines 2-16, for each group."""
        planes = []
        for grad in grads:
            theta_k, gradients = ascent(theta, grad, self.rhos)
            planes.append((unit(theta_k - theta), unit(gradients[-1]), gradients[-1]))
        if self.t % self.probe_every == 0:
            means = [
                np.mean(
                    [
                        loss(theta + self.rho_max * slerp(alpha, v0, v1))
                        for loss, (v0, v1, _) in zip(losses, planes, strict=True)
                    ]
                )
                for alpha in self.alphas
            ]
            self.alpha = float(self.alphas[np.argmax(means)])
        self.t += 1
        self.psi = float(np.mean([angle(v0, v1) for v0, v1, _ in planes]))
        results = [slerp(self.alpha, v0, v1) * np.linalg.norm(g) for v0, v1, g in planes]
        return np.mean(results, axis=0)


def momentum_sgd(
    theta0: Vector, gradient_of_step: Grad, learning_rate: float, momentum: float, num_steps: int
) -> Vector:
    """Heavy ball as in optax.sgd: m = momentum m + g, theta = theta - learning_rate m."""
    theta, m = theta0, np.zeros_like(theta0)
    for _ in range(num_steps):
        m = momentum * m + gradient_of_step(theta)
        theta = theta - learning_rate * m
    return theta


# Ascents: perturbations (theta_i, g_i) -> eps_i, and directions with a memory.


def radius(rho: float) -> Perturbation:
    """SAM's step (Foret et al. 2021): rho g / ||g||."""
    return lambda theta, g: rho * unit(g)


def magnitude(rho: float, eta: float = 0.01, mask: Vector | None = None) -> Perturbation:
    """ASAM (Kwon et al. 2021): rho T^2 g / ||T g|| with T = |theta| + eta, and 1 off the mask."""

    def perturbation(theta: Vector, g: Vector) -> Vector:
        t = np.where(True if mask is None else mask, np.abs(theta) + eta, 1.0)
        return rho * t**2 * g / np.linalg.norm(t * g)

    return perturbation


def fisher(rho: float, eta: float = 1.0) -> Perturbation:
    """Fisher SAM (Kim et al. 2022): rho f g / sqrt(sum f g^2) with f = 1 / (1 + eta g^2)."""

    def perturbation(theta: Vector, g: Vector) -> Vector:
        f = 1 / (1 + eta * g**2)
        return rho * f * g / np.sqrt(np.sum(f * g**2))

    return perturbation


class FriendlyDirection:
    """F-SAM (Li et al. 2024), Algorithm 1, lines 5-7, or the order of the authors' code.

    With sigma "cosine" it is equation 11: sigma is the cosine of gradient and average.
    """

    def __init__(
        self, decay: float = 0.9, sigma: float | str = 1.0, convention: str = "paper"
    ) -> None:
        self.decay, self.sigma, self.convention = decay, sigma, convention
        self.m: Vector | None = None

    def __call__(self, g0: Vector) -> Callable[[Vector], Vector]:
        """Ends with the m of this training step. Returns its map g_i -> d_i."""
        before, decay = self.m, self.decay

        def less(g: Vector, m: Vector) -> Vector:
            cosine = g @ m / np.linalg.norm(g) / np.linalg.norm(m)
            return g - (cosine if self.sigma == "cosine" else self.sigma) * m

        if self.convention == "paper":
            before = np.zeros_like(g0) if before is None else before
            self.m = decay * before + (1 - decay) * g0
            return lambda g: less(g, decay * before + (1 - decay) * g)
        if before is None:
            self.m = g0
            return lambda g: g
        self.m = decay * before + (1 - decay) * g0
        return lambda g: less(g, before)


class AverageDirection:
    """VaSSO (Li and Giannakis 2023): d_t = (1 - theta) d_{t-1} + theta g_t, d_0 = g_0."""

    def __init__(self, theta: float) -> None:
        self.theta = theta
        self.d: Vector | None = None

    def __call__(self, g0: Vector) -> Callable[[Vector], Vector]:
        """Ends with the d of this training step. Returns its map g_i -> d_i."""
        before, theta = self.d, self.theta

        def average(g: Vector) -> Vector:
            return g if before is None else (1 - theta) * before + theta * g

        self.d = average(g0)
        return average


def along(
    direction: Callable[[Vector], Callable[[Vector], Vector]],
    perturbation: Perturbation,
    steps: int = 1,
) -> Callable[[Vector], Route]:
    """The ascent whose steps are perturbation(theta_i, d_i), for `ascent`."""

    def route(g0: Vector) -> Route:
        d = direction(g0)
        return [lambda theta, g: perturbation(theta, d(g))] * steps

    return route


def lr_coupled_rho(
    lr: float, rho_min: float, rho_max: float, lr_min: float, lr_max: float
) -> float:
    """GSAM's official radius, linear in the learning rate, and never below zero (METHODS.md)."""
    return max(0.0, rho_min + (rho_max - rho_min) * (lr - lr_min) / (lr_max - lr_min))


# Methods under the names and arguments of the library: functions, or the `step` of classes, from
# (theta, loss, grad) to the vector that the optimizer after them receives.


class Scheduled:
    """Any step function, at training step t with the keyword arguments name = function(t)."""

    def __init__(self, step: Callable[..., Vector], **schedules: Callable[[int], float]) -> None:
        self.step_with, self.schedules, self.t = step, schedules, -1

    def step(self, theta: Vector, loss: Loss, grad: Grad) -> Vector:
        """One training step, counted."""
        self.t += 1
        values = {name: schedule(self.t) for name, schedule in self.schedules.items()}
        return self.step_with(theta, loss, grad, **values)


def project(u: Vector, v: Vector) -> Vector:
    """The orthogonal projection of u on v."""
    return (u @ v) / (v @ v) * v


def reject(u: Vector, v: Vector) -> Vector:
    """The part of u that is orthogonal to v."""
    return u - project(u, v)


def sam(theta: Vector, loss: Loss, grad: Grad, rho: float) -> Vector:
    """SAM (Foret et al. 2021): the gradient at theta + rho g_0 / ||g_0||."""
    return grad(theta + rho * unit(grad(theta)))


def sam_full(theta: Vector, grad: Grad, full: Grad, rho: float) -> Vector:
    """F-SAM paper, section 4: ascends along the batch gradient, projected on the full one."""
    return sam_gradient(theta, grad, [rho], first=project(grad(theta), full(theta)))


def sam_noise(theta: Vector, grad: Grad, full: Grad, rho: float) -> Vector:
    """F-SAM paper, section 4: ascends along the orthogonal part."""
    return sam_gradient(theta, grad, [rho], first=reject(grad(theta), full(theta)))


def sam_db(theta: Vector, grad: Grad, other: Grad, rho: float) -> Vector:
    """F-SAM paper, section 4: ascends along the gradient of another batch."""
    return sam_gradient(theta, grad, [rho], first=other(theta))


def asam(
    theta: Vector,
    loss: Loss,
    grad: Grad,
    rho: float,
    eta: float = 0.01,
    mask: Vector | None = None,
    steps: int = 1,
) -> Vector:
    """ASAM, T of every step at its theta_i."""
    return sam_gradient(theta, grad, [magnitude(rho, eta, mask)] * steps)


def fisher_sam(theta: Vector, loss: Loss, grad: Grad, rho: float, eta: float = 1.0) -> Vector:
    """Fisher SAM, the Fisher information from the batch gradient."""
    return sam_gradient(theta, grad, [fisher(rho, eta)])


class FriendlySam:
    """F-SAM, Algorithm 1."""

    def __init__(
        self, rho: float, decay: float = 0.9, sigma: float | str = 1.0, convention: str = "paper"
    ) -> None:
        self.route = along(FriendlyDirection(decay, sigma, convention), radius(rho))

    def step(self, theta: Vector, loss: Loss, grad: Grad) -> Vector:
        """Algorithm 1, lines 4-9."""
        return sam_gradient(theta, grad, self.route)


class FriendlyAsam(FriendlySam):
    """F-ASAM: the same direction through ASAM's T."""

    def __init__(
        self,
        rho: float,
        decay: float = 0.9,
        sigma: float = 1.0,
        eta: float = 0.01,
        mask: Vector | None = None,
        convention: str = "paper",
    ) -> None:
        direction = FriendlyDirection(decay, sigma, convention)
        self.route = along(direction, magnitude(rho, eta, mask))


class Vasso:
    """VaSSO: ascends along the average, descends along g_1."""

    def __init__(self, rho: float, theta: float) -> None:
        self.route = along(AverageDirection(theta), radius(rho))

    def step(self, theta: Vector, loss: Loss, grad: Grad) -> Vector:
        """One training step."""
        return sam_gradient(theta, grad, self.route)


def wsam(theta: Vector, loss: Loss, grad: Grad, rho: float, gamma: float) -> Vector:
    """Coupled WSAM (Yue et al. 2023): (1 - a) g_0 + a g_1 with a = gamma / (1 - gamma)."""
    g0, g1 = grad(theta), sam(theta, loss, grad, rho)
    a = gamma / (1 - gamma)
    return (1 - a) * g0 + a * g1


def gradient_norm_penalty(
    theta: Vector, loss: Loss, grad: Grad, rho: float, alpha: float, convention: str = "paper"
) -> Vector:
    """Zhao et al. 2022: (1 - alpha) g_0 + alpha g_1. The official code normalizes g_0."""
    g0, g1 = grad(theta), sam(theta, loss, grad, rho)
    return (1 - alpha) * (g0 if convention == "paper" else unit(g0)) + alpha * g1


def gsam(theta: Vector, loss: Loss, grad: Grad, rho: float, alpha: float) -> Vector:
    """GSAM (Zhuang et al. 2022): g_1 - alpha times the part of g_0 orthogonal to g_1."""
    g0, g1 = grad(theta), sam(theta, loss, grad, rho)
    return g1 - alpha * reject(g0, g1)


def _rescaled(total: Vector, last: Vector, scale: str | None) -> Vector:
    return total if scale is None else unit(total) * np.linalg.norm(last)


def msam(
    theta: Vector,
    loss: Loss,
    grad: Grad,
    rho: float,
    steps: int,
    include_first: bool = False,
    scale: str | None = "last",
) -> Vector:
    """MSAM and MSAM+ of the XSAM paper: the sum of the gradients, as long as g_k."""
    gradients = ascent(theta, grad, [rho] * steps)[1]
    total = sum(gradients[0 if include_first else 1 :])
    return _rescaled(total, gradients[-1], scale)


def lsam(
    theta: Vector,
    loss: Loss,
    grad: Grad,
    rho: float,
    steps: int,
    include_first: bool = False,
    scale: str | None = "last",
) -> Vector:
    """LSAM and LSAM+ of the XSAM paper: the sum of the unit gradients, as long as g_k."""
    gradients = ascent(theta, grad, [rho] * steps)[1]
    total = sum(unit(g) for g in gradients[0 if include_first else 1 :])
    return _rescaled(total, gradients[-1], scale)


def cr_sam(
    theta: Vector, loss: Loss, grad: Grad, rho: float, gamma: float = 0.1, beta: float = 0.01
) -> Vector:
    """CR-SAM (Wu et al. 2024), official: g_+ + gamma (g_+ + g_- - 2 g_0) + beta (g_+ - g_-)."""
    g0 = grad(theta)
    plus, minus = grad(theta + rho * unit(g0)), grad(theta - rho * unit(g0))
    return plus + gamma * (plus + minus - 2 * g0) + beta * (plus - minus)


def gam(
    theta: Vector,
    loss: Loss,
    grad: Grad,
    rho: float,
    gradient_rho: float,
    beta_0: float,
    beta_1: float,
    gamma: float,
    convention: str = "official",
) -> Vector:
    """GAM (Zhang et al. 2023), in the notation of METHODS.md."""
    g0 = grad(theta)
    g1 = grad(theta + gradient_rho * unit(g0))
    w2 = theta + rho * unit(g1 - g0)
    g2 = grad(w2)
    g3 = grad(w2 + gradient_rho * unit(g2))
    h_minus = (g0 if convention == "official" else beta_0 * g0) + (1 - beta_0) * g2
    h_plus = beta_1 * g1 + (1 - beta_1) * g3
    return h_plus - gamma * reject(h_minus, h_plus)


class LookSam:
    """LookSAM (Liu et al. 2022): the part of g_1 orthogonal to g_0 serves for `every` steps."""

    def __init__(self, rho: float | Callable[[int], float], alpha: float, every: int) -> None:
        self.rho = rho if callable(rho) else lambda t: rho
        self.alpha, self.every, self.t = alpha, every, -1

    def step(self, theta: Vector, loss: Loss, grad: Grad) -> Vector:
        """SAM at every `every`-th step, else g_0 + alpha ||g_0|| g_v / ||g_v||."""
        self.t += 1
        g0 = grad(theta)
        if self.t % self.every == 0:
            g1 = sam(theta, loss, grad, self.rho(self.t))
            self.g_v = reject(g1, g0)
            return g1
        return g0 + self.alpha * np.linalg.norm(g0) * unit(self.g_v)


class EigenSam:
    """Eigen-SAM (Luo et al. 2024), with the Hessian of the batch as a matrix."""

    def __init__(
        self,
        rho: float,
        alpha: float,
        every: int,
        hessian_of_step: Callable[[int], Callable[[Vector], np.ndarray]],
        iterations: int = 5,
    ) -> None:
        self.rho, self.alpha, self.every, self.iterations = rho, alpha, every, iterations
        self.hessian_of_step, self.t = hessian_of_step, -1

    def step(self, theta: Vector, loss: Loss, grad: Grad) -> Vector:
        """The gradient at the end of an ascent that is turned towards the eigenvector."""
        self.t += 1
        g = grad(theta)
        u = unit(g)
        if self.t % self.every == 0:
            self.v = u if self.t == 0 else self.v
            hessian = self.hessian_of_step(self.t)(theta)
            for _ in range(self.iterations):
                self.v = unit(hessian @ self.v)
        turned = np.sign(g @ self.v) * (self.v - (u @ self.v) * u)
        return grad(theta + self.rho * (u + self.alpha * turned))


def sam_sps_step(
    theta: Vector,
    loss: Loss,
    grad: Grad,
    rho: float,
    maximum: float,
    minimum_loss: float,
    weight_decay: float,
) -> Vector:
    """SAM-SPS (Oikonomou and Loizou 2026) at lambda = 1: what is subtracted from theta."""
    d = rho * unit(grad(theta))
    g1 = grad(theta + d)
    size = (loss(theta + d) - minimum_loss - g1 @ d) / (g1 @ g1)
    return max(0.0, min(size, maximum)) * (g1 + weight_decay * theta)


def functional_sam(
    theta: Vector,
    network: Callable[[Vector], Vector],
    jacobian: Callable[[Vector], np.ndarray],
    derivative: Callable[[Vector], Vector],
    rho: float,
) -> Vector:
    """Functional SAM (Singh et al. 2025): the Jacobian at theta_1, the derivative at theta_0."""
    c = derivative(network(theta))
    return jacobian(theta + rho * unit(jacobian(theta).T @ c)).T @ c


class Esam:
    """ESAM (Du et al. 2022), the selection strict as in the official code (METHODS.md).

    Here `losses` and `jacobian` give one row for each sample; factors[t] is mask / beta of step t.
    """

    def __init__(self, rho: float, gamma: float, factors: Sequence[Vector]) -> None:
        self.rho, self.gamma, self.factors, self.t = rho, gamma, factors, -1
        # Kept so that a test can see that the selection selects.
        self.num_selected: list[int] = []

    def step(self, theta: Vector, losses: Grad, jacobian: Grad) -> Vector:
        """The mean gradient, at the perturbed point, over the samples whose loss grew most."""
        self.t += 1
        g0 = jacobian(theta).mean(axis=0)
        point = theta + self.rho * unit(g0) * self.factors[self.t]
        growth = losses(point) - losses(theta)
        size = len(growth)
        selected = np.full(size, True)
        if self.gamma < 0.99:
            selected = growth > np.sort(growth)[::-1][max(1, int(size * self.gamma)) - 1]
        if not selected.any():
            selected = np.full(size, True)
        self.num_selected.append(int(selected.sum()))
        return jacobian(point)[selected].mean(axis=0)


class Gated:
    """The step of a method where gate(t, g_0) holds, else g_0."""

    def __init__(self, step: Callable[..., Vector], gate: Callable[[int, Vector], bool]) -> None:
        self.sharp_step, self.gate = step, gate
        self.decisions: list[bool] = []

    def step(self, theta: Vector, loss: Loss, grad: Grad) -> Vector:
        """The method does not learn of the steps that it does not make."""
        g0 = grad(theta)
        self.decisions.append(bool(self.gate(len(self.decisions), g0)))
        return self.sharp_step(theta, loss, grad) if self.decisions[-1] else g0


class GradientNorm:
    """AE-SAM (Jiang et al. 2023): sharp where ||g||^2 >= mu + c_t sigma, mu and sigma updated."""

    def __init__(self, threshold: Callable[[int], float], decay: float = 0.9) -> None:
        self.threshold, self.decay = threshold, decay

    def __call__(self, t: int, g: Vector) -> bool:
        """The decision of step t."""
        x = g @ g
        if t == 0:
            self.mean, self.variance = x, 0.0
        else:
            self.mean = self.decay * self.mean + (1 - self.decay) * x
            self.variance = self.decay * self.variance + (1 - self.decay) * (x - self.mean) ** 2
        return x >= self.mean + self.threshold(t) * np.sqrt(self.variance)


def decoupled_wsam(
    theta0: Vector,
    grad_of_step: Callable[[int], Grad],
    inner_learning_rate: Callable[[int], float],
    momentum: float,
    learning_rate: Callable[[int], float],
    rho: float,
    gamma: float,
    num_steps: int,
) -> Vector:
    """Decoupled WSAM (Yue et al. 2023) around heavy ball: theta_1, ..., theta_num_steps.

    The base step sees g_0. Then theta -= learning_rate a (g_1 - g_0), outside the momentum.
    """
    a = gamma / (1 - gamma)
    theta, m, visited = theta0, np.zeros_like(theta0), []
    for t in range(num_steps):
        grad = grad_of_step(t)
        g0 = grad(theta)
        g1 = grad(theta + rho * unit(g0))
        m = momentum * m + g0
        theta = theta - inner_learning_rate(t) * m - learning_rate(t) * a * (g1 - g0)
        visited.append(theta)
    return np.stack(visited)


def momentum_sam(
    theta0: Vector,
    grad_of_step: Callable[[int], Grad],
    rho: Callable[[int], float],
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    num_steps: int,
    *,
    decays_the_perturbed_point: bool = False,
    nesterov: bool = False,
) -> Vector:
    """Momentum-SAM (Becker et al. 2024) with heavy ball: theta_1, ..., theta_num_steps.

    The gradient is that at p = theta - rho v / ||v||. The authors' code decays p, not theta.
    """
    theta, v, visited = theta0, np.zeros_like(theta0), []
    for t in range(num_steps):
        p = theta - rho(t) * unit(v) if t else theta
        g = grad_of_step(t)(p) + weight_decay * (p if decays_the_perturbed_point else theta)
        v = momentum * v + g
        theta = theta - learning_rate * (g + momentum * v if nesterov else v)
        visited.append(theta)
    return np.stack(visited)


def momentum_sam_adamw(
    theta0: Vector,
    grad_of_step: Callable[[int], Grad],
    rho: float,
    learning_rate: float,
    weight_decay: float,
    num_steps: int,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    eps: float = 1e-8,
) -> Vector:
    """Momentum-SAM with AdamW. The perturbation is along the first moment, without its bias."""
    theta, m, v, visited = theta0, np.zeros_like(theta0), np.zeros_like(theta0), []
    for t in range(num_steps):
        g = grad_of_step(t)(theta - rho * unit(m) if t else theta)
        m, v = beta_1 * m + (1 - beta_1) * g, beta_2 * v + (1 - beta_2) * g**2
        corrected = m / (1 - beta_1 ** (t + 1)), v / (1 - beta_2 ** (t + 1))
        step = corrected[0] / (np.sqrt(corrected[1]) + eps)
        theta = theta - learning_rate * (step + weight_decay * theta)
        visited.append(theta)
    return np.stack(visited)


def async_sam(
    theta0: Vector,
    grad_of_step: Callable[[int], Grad],
    rho: Callable[[int], float],
    learning_rate: float,
    momentum: float,
    num_steps: int,
    *,
    reuse: bool,
    direction: Callable[[Vector, Vector], Vector] = lambda theta, g: unit(g),
) -> Vector:
    """AsyncSAM with a delay of 1 (Jo et al. 2025), with heavy ball: theta_1, ....

    It ascends along p, the last clean gradient, or with `reuse` the last perturbed one.
    """
    theta, v, p, visited = theta0, np.zeros_like(theta0), np.zeros_like(theta0), []
    for t in range(num_steps):
        grad = grad_of_step(t)
        g = grad(theta + rho(t) * p)
        p = direction(theta, g if reuse else grad(theta))
        v = momentum * v + g
        theta = theta - learning_rate * v
        visited.append(theta)
    return np.stack(visited)


def lookbehind(
    theta0: Vector,
    grad_of_step: Callable[[int], Grad],
    rho: Callable[[int], float],
    steps: int,
    alpha: float | Callable[[Vector, Vector], Vector],
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    num_steps: int,
) -> Vector:
    """Lookbehind (Mordido et al. 2024) with heavy ball: theta_1, ..., theta_num_steps.

    `alpha` is a number, or a function of the first and of all fast steps together.
    """
    theta, v, visited = theta0, np.zeros_like(theta0), []
    for t in range(num_steps):
        u, w, fast = theta, theta, []
        for _ in range(steps):
            u = u + rho(t) * unit(grad_of_step(t)(u))
            v = momentum * v + grad_of_step(t)(u) + weight_decay * w
            w = w - learning_rate * v
            fast.append(w)
        a = alpha(fast[0] - theta, w - theta) if callable(alpha) else alpha
        theta = a * w + (1 - a) * theta
        visited.append(theta)
    return np.stack(visited)


def sampa(
    theta0: Vector,
    grad_of_step: Callable[[int], Grad],
    ascent_grad_of_step: Callable[[int], Grad],
    rho: Callable[[int], float],
    weight: float,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    num_steps: int,
    *,
    official: bool,
) -> Vector:
    """SAMPa (Xie et al. 2024) with heavy ball: theta_1, ..., theta_num_steps.

    The official code moves y with momentum and decay, and takes the ascent's gradient on the last
    batch.
    """
    theta, v, gy, visited = theta0, np.zeros_like(theta0), np.zeros_like(theta0), []
    for t in range(num_steps):
        gs = ascent_grad_of_step(t)(theta + rho(t) * unit(gy) if t else theta)
        plain = gy + weight_decay * theta + momentum * v
        y = theta - learning_rate * (plain if official else gy)
        gy = grad_of_step(t)(y)
        v = momentum * v + (1 - weight) * gs + weight * gy + weight_decay * theta
        theta = theta - learning_rate * v
        visited.append(theta)
    return np.stack(visited)
