"""Model hubs and what was fetched from them (`download`, `cache`). Torch-free.

`names` checks what comes from outside, `store` knows where copies lie, `sources` and beside it `modelscope` and
`huggingface` speak to the hubs, `fetching` puts a copy together, `checking` finds what is torn.
"""

from toolbox.hub.store import Kind, local_copy, mark_used

__all__ = ["Kind", "local_copy", "mark_used"]
