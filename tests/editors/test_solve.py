"""The closed forms, against what the papers' equations say when one writes them down with an inverse."""

from __future__ import annotations

import pytest
import torch

from ke_tools.editors._solve import Factors, constrained, least_squares, null_space, projected, rank_one
from ke_tools.errors import InvalidInput

D_KEY, D_OUT, FACTS = 24, 10, 5


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, residuals and a second moment."""
    torch.manual_seed(seed)
    text = torch.randn(D_KEY, 400, dtype=torch.float64) * torch.linspace(0.01, 3, D_KEY, dtype=torch.float64)[:, None]
    return torch.randn(D_KEY, FACTS, dtype=torch.float64), torch.randn(D_OUT, FACTS, dtype=torch.float64), text @ text.T / 400


def delta(found: Factors) -> torch.Tensor:
    """The matrix."""
    return found.left @ found.right


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """To 1e-8 of its length."""
    return bool((found - wanted).norm() <= 1e-8 * wanted.norm())


def test_memit_is_equation_14() -> None:
    """Meng et al. 2023: Δ = R Kᵀ (λC + KKᵀ)⁻¹."""
    K, R, C = drawn()

    assert close(delta(least_squares(K, R, 7 * C)), R @ K.T @ torch.linalg.inv(7 * C + K @ K.T))


def test_emmet_meets_every_fact_exactly_by_the_least_change_of_what_is_known() -> None:
    """Gupta et al. 2024, eq. 7."""
    K, R, C = drawn()

    found = delta(constrained(K, R, C))

    assert close(found @ K, R)
    assert close(found, R @ torch.linalg.inv(K.T @ torch.linalg.inv(C) @ K) @ K.T @ torch.linalg.inv(C))


def test_rome_is_equation_2_and_emmet_of_one_fact() -> None:
    """Meng et al. 2022: Δ = Λ(C⁻¹k)ᵀ with Λ so that the fact holds."""
    K, R, C = drawn()
    k, r = K[:, 0], R[:, 0]
    u = torch.linalg.inv(C) @ k

    found = delta(rank_one(k, k, r, C))

    assert close(found, torch.outer(r, u) / (u @ k))
    assert close(found, delta(constrained(K[:, :1], R[:, :1], C)))


def test_rome_in_the_reference_convention_mixes_two_keys() -> None:
    """Rome at 0874014, compute_v: the divisor has the bare prompt's key, the direction the mean one."""
    K, R, C = drawn()
    mean, bare, r = K[:, 0], K[:, 1], R[:, 0]
    u = torch.linalg.inv(C) @ mean

    assert close(delta(rank_one(mean, bare, r, C)), torch.outer(r, u) / (bare @ u))


def test_alphaedit_is_equation_12_and_stays_in_the_null_space() -> None:
    """Fang et al. 2025: Δ = R KᵀP (K_pK_pᵀP + KKᵀP + ridge·I)⁻¹, and ΔP = Δ."""
    K, R, C = drawn()
    earlier = drawn(1)[0]
    P = null_space(C, 0.2)
    assert 0 < round(float(P.trace())) < D_KEY
    wanted = R @ K.T @ P @ torch.linalg.inv(earlier @ earlier.T @ P + K @ K.T @ P + 0.5 * torch.eye(D_KEY, dtype=torch.float64))

    found = delta(projected(K, R, P, earlier @ earlier.T, 0.5))

    assert close(found, wanted)
    assert close(found @ P, found)


@pytest.mark.parametrize("spread", [0.0, 1.0, 1e6])
def test_there_are_rare_directions_whatever_the_eigenvalues(spread: float) -> None:
    """Issue 5: the embedded model uses all directions, some enormously; a number that eigenvalues lie below left AlphaEdit none."""
    C = torch.diag(1 + spread * torch.arange(D_KEY, dtype=torch.float64).flip(0) ** 4)
    P = null_space(C, 0.25)

    assert round(float(P.trace())) == D_KEY // 4
    assert close(P @ P, P)
    if spread:
        assert close(P.diagonal()[-D_KEY // 4 :], torch.ones(D_KEY // 4, dtype=torch.float64))


def test_a_rank_deficient_moment_is_regularised() -> None:
    """Issue, bad input: too few statistics."""
    K, R, _ = drawn()
    few = torch.randn(D_KEY, 3, dtype=torch.float64)

    assert delta(least_squares(K, R, few @ few.T)).isfinite().all()
    assert close(delta(constrained(K, R, few @ few.T)) @ K, R) or delta(constrained(K, R, few @ few.T)).isfinite().all()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_moment_that_holds_no_numbers_is_refused(number: float) -> None:
    """Issue, bad input: no ridge mends it, and looking for one would never end."""
    K, R, C = drawn()
    C[0, 0] = number

    with pytest.raises(InvalidInput, match="none"):
        least_squares(K, R, C)


def test_two_facts_with_one_key_cannot_both_hold_exactly() -> None:
    """Issue, bad input: refused, not solved in silence."""
    K, R, C = drawn()
    K[:, 1] = K[:, 0]

    with pytest.raises(InvalidInput, match="same key"):
        constrained(K, R, C)
