"""What verbs and states of runs are called in reports."""

from toolbox.i18n import N_

VERBS = {
    "finetune": N_("Fine-tune"),
    "plan": N_("Dry run"),
    "merge": N_("Merge"),
    "export": N_("Export"),
    "evaluate": N_("Evaluate"),
    "serve": N_("Serve"),
}
STATES = {
    "planned": N_("○ Planned, not started"),
    "running": N_("… Running"),
    "ready": N_("● Serving"),
    "done": N_("✓ Done"),
    "failed": N_("✗ Failed"),
    "interrupted": N_("‖ Interrupted"),
    "lost": N_("✗ Lost: the process ended without a word (killed, or the power failed)"),
}
SOURCES = {
    "embedded": N_("shipped with 一锤定音"),
    "local": N_("a folder or file of one's own"),
    "modelscope": "ModelScope",
    "huggingface": "Hugging Face",
}
