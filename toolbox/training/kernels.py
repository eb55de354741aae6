"""Liger's fused kernels in place of a model's own RMSNorm, rotary embedding and SwiGLU, where the plan says so.

`finetune --set use_liger_kernel=true`, on a CUDA GPU. The losses stay ours: logits are made at labels only.
"""

from collections.abc import Sequence

from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.training import layouts
from toolbox.training.rows import Sample
from toolbox.training.step import Forward

FUSED = {
    "rope": True, "rms_norm": True, "swiglu": True, "geglu": True, "layer_norm": True,
    "cross_entropy": False, "fused_linear_cross_entropy": False,
}  # fmt: skip
"""What liger-kernel's `apply_liger_kernel_to_…` take; each architecture has some of these."""


def fuse(forward: Forward, samples: Sequence[Sample]) -> None:
    """Change the model in place. Raises InputError where there is nothing for it, or its logits come out otherwise."""
    from liger_kernel.transformers import monkey_patch

    base = getattr(forward.model, "get_base_model", lambda: forward.model)()
    before = layouts.logits_alone(forward, samples)
    if base.config.model_type not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise InputError(
            _("liger-kernel has nothing for models of the kind {kind}.").format(kind=base.config.model_type),
            _("Leave out use_liger_kernel."),
        )
    monkey_patch._apply_liger_kernel_to_instance(model=base, **FUSED)
    if not layouts.alike(layouts.logits_alone(forward, samples), before, forward.dtype):
        raise InputError(
            _("With Liger's kernels this model computes something else."), _("Leave out use_liger_kernel.")
        )
