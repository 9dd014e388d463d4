"""Loss of the Bradley–Terry model on preference pairs."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def bradley_terry_loss(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"], centring: float = 0.0
) -> Float[Tensor, ""]:
    """Return the mean over pairs of −log σ(r⁺ − r⁻) + λ(r⁺ + r⁻)².

    The first term is the negative log-likelihood of the preferences (Bradley and Terry 1952; Ouyang et al. 2022,
    eq. 1). It does not fix the scores' common offset; the second, with λ = ``centring``, pulls it to zero (Eisenstein
    et al. 2023, eq. 6), so that scores of different prompts stay in the same range.
    """
    preference = -functional.logsigmoid(chosen - rejected)
    offset = (chosen + rejected).square()
    return (preference + centring * offset).mean()
