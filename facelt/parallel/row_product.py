"""Products of a batch with one row an identity, and their gradients, a block of columns at a time.

Between the tens of thousands of columns of a product and their gradients nothing but one block is made.

B batch, C identities of this rank's range, D feature, N columns of a block.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

MIN_NORM = 1e-12
# A block of a batch of 64 stays in a processor's cache; a GPU wants work for all its units.
COLUMNS_AT_ONCE = {"cpu": 1 << 12, "cuda": 1 << 16}


def blocks(rows_CD: torch.Tensor) -> Iterator[slice]:
    """The rows' positions in blocks."""
    size = COLUMNS_AT_ONCE.get(rows_CD.device.type, 1 << 16)
    return (slice(start, min(start + size, len(rows_CD))) for start in range(0, len(rows_CD), size))


class Rows(NamedTuple):
    """What a batch is multiplied with: v . w_k + b_k, or with `unit` v . w_k / |w_k|, which knows no bias."""

    weight_CD: torch.Tensor
    bias_C: torch.Tensor | None = None
    unit: bool = False


class RowProduct(NamedTuple):
    """Batch and rows, for use inside an autograd function: no gradient.

    At 74,500 rows of 512 a normalised copy of the rows would be 153 MB, so the norms divide the product instead.
    """

    vector_BD: torch.Tensor
    weight_CD: torch.Tensor
    bias_C: torch.Tensor | None
    inverse_C: torch.Tensor | None

    @classmethod
    def of(cls, vector_BD: torch.Tensor, rows: Rows) -> "RowProduct":
        """Measures the rows where only their directions count."""
        norm_C = torch.linalg.vector_norm(rows.weight_CD, dim=1) if rows.unit else None
        return cls(
            vector_BD,
            rows.weight_CD,
            rows.bias_C,
            None if norm_C is None else norm_C.clamp_min_(MIN_NORM).reciprocal_(),
        )

    def columns(self) -> torch.Tensor:
        """The whole product [B, C]."""
        if self.bias_C is not None:
            return torch.addmm(self.bias_C, self.vector_BD, self.weight_CD.t())
        column_BC = self.vector_BD @ self.weight_CD.t()
        return column_BC if self.inverse_C is None else column_BC.mul_(self.inverse_C)


class RowGradients:
    """The gradients of a product's vectors, rows and biases, from those of its columns."""

    def __init__(self, product: RowProduct, wanted: tuple[bool, bool, bool]) -> None:
        self.product = product
        vector, weight, bias = wanted
        self.vector_BD = torch.zeros_like(product.vector_BD) if vector else None
        self.weight_CD = torch.empty_like(product.weight_CD) if weight else None
        self.bias_C = torch.empty_like(product.bias_C) if bias and product.bias_C is not None else None

    def add(self, part: slice, grad_BN: torch.Tensor, column_BN: torch.Tensor | None = None) -> None:
        """Takes a block of the columns' gradient, which is spent; where directions count, beside the columns.

        There dL/dw = (g / |w|)^T v - w * sum_b(g z) / |w|^2, the radial part taken out in place.
        """
        weight_ND = self.product.weight_CD[part]
        inverse_C = self.product.inverse_C
        if self.bias_C is not None:
            torch.sum(grad_BN, dim=0, out=self.bias_C[part])
        if inverse_C is not None:
            radial_N = (grad_BN * column_BN).sum(dim=0).mul_(inverse_C[part].square())
            grad_BN.mul_(inverse_C[part])
        if self.vector_BD is not None:
            self.vector_BD.addmm_(grad_BN, weight_ND)
        if self.weight_CD is not None:
            grad_ND = self.weight_CD[part]
            torch.mm(grad_BN.t(), self.product.vector_BD, out=grad_ND)
            if inverse_C is not None:
                grad_ND.addcmul_(weight_ND, radial_N[:, None], value=-1)

    def all(self) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Of vectors, rows and biases, each where it was wanted."""
        return self.vector_BD, self.weight_CD, self.bias_C


class _Columns(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vector_BD, weight_CD, bias_C, unit: bool) -> torch.Tensor:
        product = RowProduct.of(vector_BD, Rows(weight_CD, bias_C, unit))
        column_BC = product.columns()
        ctx.save_for_backward(*product, column_BC)
        return column_BC

    @staticmethod
    def backward(ctx, grad_BC: torch.Tensor):
        *product, column_BC = ctx.saved_tensors
        gradients = RowGradients(RowProduct(*product), ctx.needs_input_grad[:3])
        for part in blocks(column_BC.t()):
            gradients.add(part, grad_BC[:, part].clone(), column_BC[:, part])
        return *gradients.all(), None


def columns(vector_BD: torch.Tensor, rows: Rows) -> torch.Tensor:
    """The product of every vector with every row, [B, C], with all gradients."""
    return _Columns.apply(vector_BD, *rows)
