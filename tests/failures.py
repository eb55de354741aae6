"""Texts that libraries, drivers and kernels write when they fail, each with what a diagnosis should call it.

(kind, where the text comes from, the text). A source in brackets is a package of this environment, in which the words
stand; the others are logs that people posted.
"""

FAILURES: tuple[tuple[str, str, str], ...] = (
    (
        "out_of_memory",
        "github.com/pytorch/pytorch/issues/16417",
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 22.00 MiB. GPU 0 has a total capacity of "
        "23.65 GiB of which 11.06 MiB is free. Including non-PyTorch memory, this process has 23.60 GiB memory in use.",
    ),
    (
        "out_of_memory",
        "github.com/pytorch/pytorch/issues/59778",
        "RuntimeError: CUDA out of memory. Tried to allocate 2.26 GiB (GPU 0; 6.00 GiB total capacity; 781.59 MiB "
        "already allocated; 3.03 GiB free; 1.24 GiB reserved in total by PyTorch)",
    ),
    (
        "out_of_host_memory",
        "[torch] c10/core/impl/alloc_cpu.cpp",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 281474976710656 bytes. Error code 12 (Cannot allocate memory)",
    ),
    (
        "driver",
        "github.com/lllyasviel/Fooocus/issues/1313",
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
        "driver by downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx",
    ),
    (
        "driver",
        "[torch] torch/cuda/__init__.py",
        "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed "
        "a driver from http://www.nvidia.com/Download/index.aspx",
    ),
    (
        "driver",
        "[nvidia-ml-py] NVML_ERROR_LIB_RM_VERSION_MISMATCH",
        "Failed to initialize NVML: Driver/library version mismatch",
    ),
    (
        "cuda_build",
        "[torch] torch/cuda/__init__.py",
        "AssertionError: Torch not compiled with CUDA enabled",
    ),
    (
        "gpu_lost",
        "github.com/vllm-project/vllm/issues/5222",
        "RuntimeError: CUDA error: uncorrectable ECC error encountered",
    ),
    (
        "gpu_lost",
        "github.com/wilicc/gpu-burn/issues/1",
        "NVRM: Xid (PCI:0000:02:00): 79, GPU has fallen off the bus.",
    ),
    (
        "gpu_lost",
        "github.com/rwth-i6/returnn/issues/1486",
        "Unable to determine the device handle for GPU0000:03:00.0: Unknown Error",
    ),
    (
        "gated",
        "github.com/ToTheBeginning/PuLID/issues/97",
        "huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-66f4b037)\n\n"
        "Cannot access gated repo for url https://huggingface.co/black-forest-labs/FLUX.1-dev/resolve/main/x.json.\n"
        "Access to model black-forest-labs/FLUX.1-dev is restricted. You must have access to it and be authenticated "
        "to access it. Please log in.",
    ),
    (
        "gated",
        "github.com/ariG23498/gemma3-object-detection/issues/5",
        "403 Client Error. (Request ID: Root=1-6824e511)\n\nCannot access gated repo for url "
        "https://huggingface.co/google/gemma-3-4b-pt/resolve/main/config.json.\nAccess to model google/gemma-3-4b-pt "
        "is restricted and you are not in the authorized list.",
    ),
    (
        "repository",
        "[huggingface_hub] utils/_http.py",
        "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error.\n\nRepository Not Found for url: "
        "https://huggingface.co/api/models/nobody/nothing.\nPlease make sure you specified the correct `repo_id` and "
        "`repo_type`.\nIf you are trying to access a private or gated repo, make sure you are authenticated and your "
        "token has the required permissions.",
    ),
    (
        "repository",
        "[modelscope] hub/errors.py",
        "404 Not Found: nobody/nothing does not exist or is not accessible, Request id: 1 for url: "
        "https://www.modelscope.cn/api/v1/models/nobody/nothing",
    ),
    (
        "token",
        "[modelscope] hub/errors.py",
        "Authentication token does not exist, failed to access nobody/private which may not exist or may be private. "
        "Please login first.",
    ),
    (
        "network",
        "[transformers] utils/hub.py",
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the "
        "cached files.\nCheck your internet connection",
    ),
    (
        "network",
        "[huggingface_hub] errors.py",
        "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find the requested files in the disk cache and "
        "outgoing traffic has been disabled. To enable hf.co look-ups and downloads online, set 'local_files_only' "
        "to False.",
    ),
    (
        "tokenizer",
        "[transformers] tokenization_utils_base.py",
        "OSError: Can't load tokenizer for '/models/x'. If you were trying to load it from "
        "'https://huggingface.co/models', make sure you don't have a local directory with the same name.",
    ),
    (
        "chat_template",
        "[transformers] tokenization_utils_base.py",
        "ValueError: Cannot use chat template functions because tokenizer.chat_template is not set and no template "
        "argument was passed!",
    ),
    ("no_target", "[peft] tuners/tuners_utils.py", "ValueError: Target modules {'q'} not found in the base model."),
    (
        "disk_full",
        "[safetensors] an error of Rust's std::io",
        "safetensors_rust.SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)",
    ),
    ("disk_full", "errno EDQUOT", "OSError: [Errno 122] Disk quota exceeded: '/home/x/checkpoint-5/state.json'"),
    (
        "port",
        "[python] asyncio/base_events.py",
        "[Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use",
    ),
    (
        "crashed",
        "[python] faulthandler",
        "Fatal Python error: Segmentation fault\n\nCurrent thread 0x00007f (most recent call first):\n"
        '  File "/x/torch/nn/functional.py", line 2292 in linear',
    ),
    ("missing_package", "[python] importlib", "ModuleNotFoundError: No module named 'flash_attn'"),
)
