"""How a chat template has its model write calls to tools, so that an engine can be told which reader to use."""

MARKS = (
    ("qwen3_coder", ("<function=",)),
    ("glm47", ("<arg_key>",)),
    ("minimax_m2", ("<minimax:tool_call>",)),
    ("hermes", ("<tool_call>",)),
    ("mistral", ("[TOOL_CALLS]",)),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>", "```json")),
    ("deepseek_v31", ("<｜tool▁calls▁begin｜>",)),
    ("kimi_k2", ("<|tool_calls_section_begin|>",)),
    ("internlm", ("<|action_start|>",)),
    ("lfm2", ("<|tool_call_start|>",)),
    ("gpt_oss", ("<|channel|>commentary",)),
    ("llama3", ("ipython", '"parameters"')),
)
"""A manner, and what a template that has it contains, all of it; the first that fits counts. The manners that share
<tool_call> with Hermes' differ in what follows it, and come before."""


def style(template: str) -> str:
    """The manner of a template's calls; empty where it writes none, or none that is known."""
    if "tool" not in template:
        return ""
    return next((name for name, marks in MARKS if all(mark in template for mark in marks)), "")
