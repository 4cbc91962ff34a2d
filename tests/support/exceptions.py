"""Reading exceptions."""

import traceback


def all_texts(error: BaseException) -> str:
    """All texts of an exception and its causes, shown, logged or by attribute."""
    texts = traceback.format_exception(error)
    todo, seen = [error], set()
    while todo:
        item = todo.pop()
        if item is None or item in seen:
            continue
        seen.add(item)
        texts += [str(item), repr(item), repr(item.args), repr(vars(item))]
        texts += getattr(item, "__notes__", [])
        todo += [item.__cause__, item.__context__, *getattr(item, "exceptions", [])]
    return "\n".join(texts)
