"""`python -m rlhf feedback`: a script, or a person with a pipe, chooses between answers."""

import json
import sys
import time
from collections.abc import Iterator
from itertools import count

from rlhf.config import BadInput, FeedbackArguments
from rlhf.feedback.agreement import agreement
from rlhf.feedback.live import LOOKS_SECONDS, answering
from rlhf.feedback.store import BY_BASE, Store


def feedback(what: str, args: FeedbackArguments) -> Iterator[str]:
    """Do one of `next`, `choose`, `undo`, `forget`, `import`, `export` and `agreement`; yields lines to print.

    Raises:
        BadInput: the store, or what is read from standard input, cannot be used.
    """
    if what == "next":
        yield from _next(args)
        return
    store = Store(args.store)
    if what == "choose":
        yield _choose(store, args.person)
    elif what == "import":
        yield f"{store.take_in(sys.stdin.read()):,} preferences are new."
    elif what == "export":
        yield from (json.dumps(row, ensure_ascii=False) for row in store.preferences())
    elif what == "undo":
        pair = store.undo(args.person)
        yield f"{args.person} has not chosen yet." if pair is None else f"The choice for {pair.id} was taken back."
    elif what == "forget":
        yield f"{store.forget(args.person):,} choices of {args.person} were deleted."
    else:
        found = agreement(store.judgements())
        if found is None:
            yield "No pair has been judged by two people yet."
        else:
            alpha = "not defined" if found.alpha is None else f"{found.alpha:.2f}"
            yield (
                f"{found.judgements} judgements of {found.pairs} pairs: two people agree in {100 * found.raw:.0f} %, "
                f"Krippendorff's alpha is {alpha}."
            )


def _next(args: FeedbackArguments) -> Iterator[str]:
    # Takes seconds to import, and only this needs it.
    from rlhf import models
    from rlhf.feedback.ask import PROMPTS_AT_ONCE, Asker

    model, tokenizer = models.load_policy(args.model_name_or_path)
    store = Store.open(args.store, args.model_name_or_path, models.revision(model))
    given, asker = store.next(args.person, args.n, answering(store)), None
    for batch in count():
        if len(given) == args.n:
            break
        if (who := answering(store)) != BY_BASE:  # a live run makes the pairs
            time.sleep(LOOKS_SECONDS)
        else:
            asker = asker or Asker(model, tokenizer, args)
            if not asker.add(store, max(args.n, PROMPTS_AT_ONCE)) or batch == 100:
                raise BadInput(f"{args.model_name_or_path} gives no two different answers that end.")
        given = store.next(args.person, args.n, who)
    for pair in given:
        yield json.dumps({"id": pair.id, "prompt": pair.question, "a": pair.a, "b": pair.b}, ensure_ascii=False)


def _choose(store: Store, person: str) -> str:
    """Record the choices of standard input; a line that is none hinders no other."""
    faults, recorded = [], 0
    for number, line in enumerate(sys.stdin, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            store.choose(row["id"], row["choice"], str(row.get("person") or person))
            recorded += 1
        except BadInput as error:
            faults.append(f"line {number}: {error}")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            faults.append(f"line {number} is no JSON object with id and choice")
    said = f"{recorded:,} choices were recorded"
    if faults:
        more = f" And {len(faults) - 3} more." if len(faults) > 3 else ""
        raise BadInput(f"{said}, {len(faults)} were not: {' '.join(faults[:3])}{more}")
    return f"{said}."
