"""Write quoting.jsonl: questions that the models really answer by quoting.

    make_quoting.py FP32.bundle W8A8.bundle INT4.bundle

A 135M model asked for a quotation often wanders off, and then measures something else. So each
passage is asked for in several ways, and a prompt is kept if the *plain* answer of every bundle
consists of the prompt's own words: at least SHARE of its tokens lie in runs of RUN tokens that
stand in the prompt. Speed plays no part in the choice.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from specplug import SpeculativeDecoder

RUN, SHARE, TOKENS = 8, 0.75, 128

QUESTIONS = {
    "copy": "Copy this text exactly:\n\n{text}",
    "quote": "Read this text:\n\n{text}\n\nQuote the whole text above word for word.",
    "twice": "Copy this text exactly, twice:\n\n{text}",
    "say": 'Text: "{text}"\n\nQuestion: What does the text say? Answer with its exact words.',
    "proofread": "Proofread this text and give it back in full. Correct mistakes only.\n\n{text}",
}

PASSAGES = {
    "lighthouse": (
        "The lighthouse keeper wrote in his log every evening at nine. On the third of March "
        "he noted a wind of forty knots from the north-west, a broken pane on the seaward "
        "side, and a schooner that passed without lights. He wrote that the lamp had burned "
        "four gallons of oil since Sunday. He added, as he always did, that nothing else had "
        "happened. "
    ),
    "bread": (
        "To make a plain loaf, dissolve seven grams of dry yeast in three hundred millilitres "
        "of warm water. Stir the water into five hundred grams of strong flour mixed with ten "
        "grams of salt. Knead the dough for ten minutes, until it is smooth, and let it rise "
        "for an hour in a covered bowl. Shape it, let it rise again for forty minutes, and "
        "bake it at two hundred and twenty degrees for half an hour. "
    ),
    "warranty": (
        "The warranty covers defects in material and workmanship for twenty-four months from "
        "the date of delivery. It does not cover damage caused by water, by falls, or by "
        "repairs that were not carried out by an authorised workshop. To make a claim, send "
        "the device together with the receipt to the address on the back page. Devices "
        "without a receipt are returned unrepaired at the sender's expense. "
    ),
    "bees": (
        "A honeybee colony keeps the temperature of its brood nest between thirty-four and "
        "thirty-six degrees. When it is too hot, some workers fetch water and others fan it "
        "with their wings. When it is too cold, the bees press close together and shiver "
        "their flight muscles, which produces heat without moving the wings. In winter the "
        "cluster turns slowly, so that every bee spends some time in the warm middle. "
    ),
    "minutes": (
        "The committee met on Tuesday at six in the evening. Mrs Okafor reported that the "
        "roof of the sports hall leaks in three places and that the repair will cost eleven "
        "thousand pounds. Mr Lindqvist proposed to close the hall during the Easter holidays. "
        "The proposal was carried with five votes against two. The next meeting will take "
        "place on the fourteenth of May in the library. "
    ),
    "glacier": (
        "Glaciers move because ice under pressure behaves like a very thick liquid. The upper "
        "layer, about fifty metres deep, is brittle and breaks into crevasses, while the ice "
        "beneath it flows. Where meltwater reaches the bed, the glacier slides as well, "
        "sometimes several metres a day. The stones that it carries scratch the rock below, "
        "and these scratches show, ten thousand years later, which way the ice went. "
    ),
    "router": (
        "Before you update the router, save its configuration under Settings, Backup. "
        "Download the file for your model and check that its size is exactly sixteen "
        "megabytes. Connect the computer by cable, not by radio, and switch off any firewall. "
        "Start the update and do not cut the power for at least six minutes, even if the "
        "light blinks red. When the light stays green, log in again and restore the "
        "configuration. "
    ),
    "train": (
        "The night train leaves the capital at twenty-two forty and stops in Brenn, Oldsea "
        "and Marwick before it reaches the border at four fifteen in the morning. Passports "
        "are collected by the conductor and returned at breakfast. The dining car opens at "
        "six. Passengers with bicycles must board at the rear, where there is room for eight, "
        "and must have a reservation, which costs five crowns. "
    ),
    "soil": (
        "A good garden soil is made of about equal parts of sand, silt and clay, with a "
        "little humus. Sand lets water through, clay holds it, and humus feeds the plants. To "
        "find out what you have, fill a jar with one third soil and two thirds water, shake "
        "it, and let it stand for a day. The sand sinks first, then the silt, then the clay, "
        "and the humus floats on top. "
    ),
    "contract": (
        "The tenant pays a deposit of three months' rent before moving in. The landlord keeps "
        "the deposit in a separate account and returns it within six weeks after the end of "
        "the lease, less the cost of repairs. The tenant may not sublet the flat without "
        "written consent. Either party may end the lease with three months' notice to the end "
        "of a quarter. Pets other than caged birds and fish need the landlord's permission. "
    ),
}


def quoted_share(prompt: list[int], answer: tuple[int, ...]) -> float:
    """The share of the answer's tokens that lie in runs of RUN tokens of the prompt."""
    runs = {tuple(prompt[i : i + RUN]) for i in range(len(prompt) - RUN + 1)}
    quoted = set()
    for start in range(len(answer) - RUN + 1):
        if tuple(answer[start : start + RUN]) in runs:
            quoted.update(range(start, start + RUN))
    return len(quoted) / len(answer)


def main(bundles: list[str]) -> None:
    decoders = [SpeculativeDecoder.from_bundle(bundle) for bundle in bundles]
    lines = []
    for passage, text in PASSAGES.items():
        for form, question in QUESTIONS.items():
            prompt = question.format(text=text.strip())
            ids = decoders[0].encode(prompt)
            answers = [decoder.generate(ids, max_tokens=TOKENS).token_ids for decoder in decoders]
            if all(quoted_share(ids, answer) >= SHARE for answer in answers):
                name = f"quoting-{passage}-{form}"
                lines.append(json.dumps({"id": name, "category": "quoting", "prompt": prompt}))
                print(name, file=sys.stderr)
    path = Path(__file__).with_name("quoting.jsonl")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(sys.argv[1:])
