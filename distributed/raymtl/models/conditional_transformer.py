"""A Transformer whose LayerNorms a hypernetwork sets, for each task and behaviour type.

The first part of DTRN's Task-specific Interest Module (see `dtrn`). Found in public descriptions
of the paper: the hypernetwork's inputs (task embedding, behaviour type embedding) and outputs
(scale and shift of the LayerNorms of a basic Transformer). Everything else is our reconstruction.

Shape letters besides those of `batch`: K conditions (one per task, or 1 for all tasks) · N norms of
a Transformer · R rows that hold events · G groups of rows that a block is run on (1 before the
first conditional norm, K from there on).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Conditions = Literal["task+behaviour", "task", "behaviour"]

EPS = 1e-5
"""Added to the variance in a norm; torch's default."""


class HyperNorms(nn.Module):
    """Scale and shift of every norm, made from embeddings of the task and the behaviour type.

        h_tm = ReLU(W_0 [e_t, e_m] + b_0)
        scale_tm = 1 + U_scale h_tm + a,  shift_tm = U_shift h_tm + b      for each norm

    W_0 and the U are shared by all (t, m), so a further task costs e_t only and a further behaviour
    type e_m only. Ours: this form; the 1, by which training starts near an ordinary LayerNorm; the
    start (e standard normal, U normal of standard deviation 1e-2, a and b zero).
    """

    def __init__(
        self,
        sizes_KM: tuple[int, int],
        embedding_widths: tuple[int, int],
        hidden: int,
        num_norms: int,
        width: int,
    ):
        """Makes the hypernetwork of K tasks and M behaviour types.

        Args:
            embedding_widths: of e_t and e_m; 0 leaves that input out.
            hidden: width of h.
        """
        super().__init__()
        (num_tasks, num_behaviours), (task_width, behaviour_width) = sizes_KM, embedding_widths
        assert task_width or behaviour_width, "a hypernetwork without inputs"
        self.sizes_KM = (num_tasks if task_width else 1, num_behaviours)
        self.sizes_N2D = (num_norms, 2, width)
        self.task_KI = _embedding(num_tasks, task_width)
        self.behaviour_MI = _embedding(num_behaviours, behaviour_width)
        self.inner = nn.Linear(task_width + behaviour_width, hidden)
        self.outer = nn.Linear(hidden, num_norms * 2 * width)
        nn.init.normal_(self.outer.weight, std=1e-2)
        nn.init.zeros_(self.outer.bias)

    def forward(self) -> Tensor:
        """Returns norms_KMN2D: scale, then shift, of every norm; K is 1 without e_t."""
        parts = []
        if self.task_KI is not None:
            parts.append(self.task_KI.unsqueeze(1).expand(*self.sizes_KM, -1))
        if self.behaviour_MI is not None:
            parts.append(self.behaviour_MI.expand(*self.sizes_KM, -1))
        hidden_KMI = F.relu(self.inner(torch.cat(parts, dim=-1)))
        made_KMN2D = self.outer(hidden_KMI).unflatten(-1, self.sizes_N2D)
        return made_KMN2D + _ordinary(made_KMN2D)


class SharedNorms(nn.Module):
    """Ordinary LayerNorms: one trained scale and shift per norm for all tasks and behaviours."""

    def __init__(self, num_behaviours: int, num_norms: int, width: int):
        super().__init__()
        self.num_behaviours = num_behaviours
        self.scale_shift_N2D = nn.Parameter(_ordinary(torch.empty(num_norms, 2, width)))

    def forward(self) -> Tensor:
        """Returns norms_KMN2D with K = 1."""
        return self.scale_shift_N2D.expand(1, self.num_behaviours, -1, -1, -1)


class ConditionalTransformer(nn.Module):
    """Post-norm Transformer blocks whose weights are shared by all tasks and behaviour types.

        A   = MHA(S, S, S)
        S'  = CLN_1(S + dropout(A))
        S'' = CLN_2(S' + dropout(FFN(S'))),   FFN = linear, ReLU, linear

    Ours: post-norm, no biases in the attention, dropout there only. With post-norm the first
    block's attention depends on no task, so it runs once for all of them.
    """

    def __init__(
        self, width: int, num_heads: int, num_blocks: int, ffn_factor: int, dropout: float
    ):
        super().__init__()
        self.num_norms = 2 * num_blocks
        self.blocks = nn.ModuleList(
            ConditionalBlock(width, num_heads, ffn_factor, dropout) for _ in range(num_blocks)
        )

    def forward(
        self, events_RSD: Tensor, mask_RS: Tensor, norms_KN2D: Tensor, last_only: bool = False
    ) -> Tensor:
        """Encodes sequences of one behaviour type under every condition.

        Args:
            mask_RS: True where there is an event; every row has one.
            last_only: returns the output of the last place only, and does not compute what only
                the others need.

        Returns:
            (K, R, S, D), at empty places anything finite; S is 1 with last_only.
        """
        x_GRSD = events_RSD.unsqueeze(0)
        for n, block in enumerate(self.blocks):
            is_last = n == len(self.blocks) - 1
            norms_K22D = norms_KN2D[:, 2 * n : 2 * n + 2]
            x_GRSD = block(x_GRSD, mask_RS, norms_K22D, last_only and is_last)
        return x_GRSD


class ConditionalBlock(nn.Module):
    """One block of `ConditionalTransformer`."""

    def __init__(self, width: int, num_heads: int, ffn_factor: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.in_projection = nn.Linear(width, 3 * width, bias=False)
        self.out_projection = nn.Linear(width, width, bias=False)
        self.ffn_inner = nn.Linear(width, ffn_factor * width)
        self.ffn_outer = nn.Linear(ffn_factor * width, width)
        nn.init.xavier_uniform_(self.in_projection.weight)

    def forward(
        self, x_GRSD: Tensor, mask_RS: Tensor, norms_K22D: Tensor, last_only: bool
    ) -> Tensor:
        """Returns (K, R, S, D)."""
        attended = F.dropout(self._attend(x_GRSD, mask_RS), self.dropout, self.training)
        x_GRSD = x_GRSD + attended
        if last_only:
            x_GRSD = x_GRSD[:, :, -1:]
        x_KRSD = conditional_norm(x_GRSD, norms_K22D[:, 0])
        ffn_KRSD = self.ffn_outer(F.relu(self.ffn_inner(x_KRSD), inplace=True))
        x_KRSD = x_KRSD + F.dropout(ffn_KRSD, self.dropout, self.training)
        return conditional_norm(x_KRSD, norms_K22D[:, 1])

    def _attend(self, x_GRSD: Tensor, mask_RS: Tensor) -> Tensor:
        groups = len(x_GRSD)
        x_QSD = x_GRSD.flatten(0, 1)
        parts = self.in_projection(x_QSD).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mask_Q11S = mask_RS.repeat(groups, 1)[:, None, None]
        mixed_QHSD = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_Q11S)
        out_QSD = self.out_projection(mixed_QHSD.transpose(1, 2).flatten(2))
        return out_QSD.unflatten(0, (groups, -1))


def conditional_norm(x_GRSD: Tensor, scale_shift_K2D: Tensor) -> Tensor:
    """CLN(x) = scale * (x - mean(x)) / sqrt(var(x) + eps) + shift over D, per condition.

    Args:
        x_GRSD: G is 1, the same for every condition, or K.

    Returns:
        (K, R, S, D).
    """
    scale_K11D, shift_K11D = scale_shift_K2D[:, :, None, None].unbind(1)
    return F.layer_norm(x_GRSD, x_GRSD.shape[-1:], eps=EPS) * scale_K11D + shift_K11D


def _embedding(num: int, width: int) -> nn.Parameter | None:
    return nn.Parameter(torch.randn(num, width)) if width else None


def _ordinary(like_2D: Tensor) -> Tensor:
    """Scale 1 and shift 0, in the shape (.., 2, D) of `like`."""
    ordinary = torch.zeros_like(like_2D)
    ordinary[..., 0, :] = 1
    return ordinary
