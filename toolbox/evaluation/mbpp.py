"""MBPP on a model: asked with the paper's three examples, its programs run confined (`evaluate --suite mbpp`)."""

from toolbox.evaluation.code import MAX_NEW_TOKENS, extracted, graded
from toolbox.evaluation.measures import Finding
from toolbox.evaluation.subjects import Subject
from toolbox.inference import Watch
from toolbox.sandbox import running
from toolbox.suites import Suite, mbpp
from toolbox.suites.mbpp import Problem
from toolbox.suites.rows import spread

BEGIN, DONE = "[BEGIN]", "[DONE]"
EXAMPLES = (
    Problem(
        task_id=2,
        prompt="Write a function to find the similar elements from the given two tuple lists.",
        code="def similar_elements(test_tup1, test_tup2):\n  res = tuple(set(test_tup1) & set(test_tup2))\n"
        "  return (res) ",
        test_list=[
            "assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)",
            "assert similar_elements((1, 2, 3, 4),(5, 4, 3, 7)) == (3, 4)",
            "assert similar_elements((11, 12, 14, 13),(17, 15, 14, 13)) == (13, 14)",
        ],
    ),
    Problem(
        task_id=3,
        prompt="Write a python function to identify non-prime numbers.",
        code="import math\ndef is_not_prime(n):\n    result = False\n    for i in range(2,int(math.sqrt(n)) + 1):\n"
        "        if n % i == 0:\n            result = True\n    return result",
        test_list=[
            "assert is_not_prime(2) == False",
            "assert is_not_prime(10) == True",
            "assert is_not_prime(35) == True",
        ],
    ),
    Problem(
        task_id=4,
        prompt="Write a function to find the largest integers from a given list of numbers using heap queue algorithm.",
        code="import heapq as hq\ndef heap_queue_largest(nums,n):\n  largest_nums = hq.nlargest(n, nums)\n"
        "  return largest_nums",
        test_list=[
            "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],3)==[85, 75, 65] ",
            "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],2)==[85, 75] ",
            "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],5)==[85, 75, 65, 58, 35]",
        ],
    ),
)
"""The rows 2, 3 and 4 of the data (CC BY 4.0), which the authors put before every question (its README)."""


def measure(subject: Subject, suite: Suite, limit: int, watch: Watch) -> Finding:
    """pass@1 of greedy answers, or with samples pass@k. Raises InputError, before all else, where no sandbox holds."""
    running.check()
    tasks = [task for task in spread(mbpp.read(suite.path), limit) for _sample in range(suite.samples)]
    programs = written(subject, tasks, suite.samples > 1, lambda done, total: watch(done, 2 * total))
    return graded(tasks, programs, suite.samples, lambda done, total: watch(total + done, 2 * total))


def written(subject: Subject, tasks: list[Problem], do_sample: bool, watch: Watch) -> list[str]:
    """A program for each task, up to the mark that ends the examples' ones."""
    prompts = [prompt(task) for task in tasks]
    tokenizer = getattr(subject, "tokenizer", None)
    if tokenizer is not None and not tokenizer.chat_template and not do_sample:
        said = subject.complete(prompts, max_new_tokens=MAX_NEW_TOKENS, stop=(DONE,), watch=watch)
    else:
        talks = [[{"role": "user", "content": text}] for text in prompts]
        said = subject.generate(talks, max_new_tokens=MAX_NEW_TOKENS, do_sample=do_sample, stop=(DONE,), watch=watch)
    return [extracted(text.partition(BEGIN)[2] or text, task.name) for task, text in zip(tasks, said, strict=True)]


def prompt(task: Problem) -> str:
    """The authors' format, word for word."""
    solved = "".join(f"{_asked(one)}{one.code}\n{DONE}\n\n" for one in EXAMPLES)
    return f"{solved}{_asked(task)}"


def _asked(task: Problem) -> str:
    wish = f"You are an expert Python programmer, and here is your task: {task.prompt}"
    return f"{wish} Your code should pass these tests:\n\n{chr(10).join(task.test_list)}\n{BEGIN}\n"
