"""Write own.jsonl: sixty prompts of the kinds that services answer all day, ten a group.

chat, code_edit, summary, rag, extraction, agent. The texts are ours; what a small model makes of them
is not looked at when they are chosen.
"""

from __future__ import annotations

import json
from pathlib import Path

CHAT = (
    "How do I keep basil alive on a windowsill in winter?",
    "My neighbour plays the drums at night. Help me write him a friendly note.",
    "What should I look at before I buy a used bicycle?",
    "Explain to a ten-year-old why ice floats.",
    "Give me three ideas for a cheap birthday party at home.",
    "I have an interview tomorrow and I am nervous. What can I do tonight?",
    "What is the difference between a debit card and a credit card?",
    "Plan a rainy Sunday with two small children.",
    "Which habits help to learn a language on one's own?",
    "Is it better to run in the morning or in the evening?",
)

CODE = {
    "cart": """class Cart:
    def __init__(self):
        self.items = []

    def add(self, name, price, quantity=1):
        self.items.append({"name": name, "price": price, "quantity": quantity})

    def total(self):
        total = 0
        for item in self.items:
            total += item["price"] * item["quantity"]
        return total

    def remove(self, name):
        self.items = [item for item in self.items if item["name"] != name]
""",
    "retry": """import time

def fetch_with_retry(fetch, url, attempts=3, delay=1.0):
    last_error = None
    for attempt in range(attempts):
        try:
            return fetch(url)
        except ConnectionError as error:
            last_error = error
            time.sleep(delay)
            delay *= 2
    raise last_error
""",
    "parse": """def parse_config(text):
    result = {}
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, value = line.split("=", 1)
        result[key.strip()] = value.strip()
    return result
""",
    "queue": """class Queue:
    def __init__(self, size):
        self.size = size
        self.entries = []

    def push(self, entry):
        if len(self.entries) == self.size:
            raise OverflowError("queue is full")
        self.entries.append(entry)

    def pop(self):
        if not self.entries:
            raise IndexError("queue is empty")
        return self.entries.pop(0)
""",
    "average": """def average(numbers):
    total = 0
    count = 0
    for number in numbers:
        total += number
        count += 1
    return total / count

def variance(numbers):
    mean = average(numbers)
    total = 0
    for number in numbers:
        total += (number - mean) ** 2
    return total / len(numbers)
""",
    "route": """from flask import Flask, jsonify, request

app = Flask(__name__)
users = {}

@app.route("/users/<name>", methods=["GET"])
def get_user(name):
    if name not in users:
        return jsonify({"error": "not found"}), 404
    return jsonify(users[name])

@app.route("/users/<name>", methods=["PUT"])
def put_user(name):
    users[name] = request.get_json()
    return jsonify(users[name]), 201
""",
    "matrix": """def multiply(a, b):
    rows = len(a)
    columns = len(b[0])
    inner = len(b)
    result = [[0] * columns for _ in range(rows)]
    for i in range(rows):
        for j in range(columns):
            for k in range(inner):
                result[i][j] += a[i][k] * b[k][j]
    return result
""",
    "words": """def count_words(path):
    counts = {}
    with open(path) as file:
        for line in file:
            for word in line.lower().split():
                word = word.strip(".,;:!?")
                if word:
                    counts[word] = counts.get(word, 0) + 1
    return counts
""",
    "account": """class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance += amount

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
""",
    "dates": """from datetime import date, timedelta

def working_days(start, end, holidays=()):
    days = []
    day = start
    while day <= end:
        if day.weekday() < 5 and day not in holidays:
            days.append(day)
        day += timedelta(days=1)
    return days
""",
}
EDITS = (
    ("items", "entries"),
    ("attempts", "tries"),
    ("result", "config"),
    ("entries", "waiting"),
    ("total", "amount"),
    ("users", "people"),
    ("inner", "shared"),
    ("counts", "found"),
    ("balance", "money"),
    ("days", "dates"),
)

ARTICLES = (
    "The town council of Averby decided on Monday to close the old swimming hall at the end of June. "
    "The building dates from 1964, and an inspection in the spring found rust in the beams above the "
    "large pool. A repair would cost nine million crowns and take a year. The council will instead "
    "build a new hall beside the school, which is to open in two years. Until then the swimming club "
    "may use the pool of the neighbouring town on three evenings a week. Several parents criticised "
    "that beginners' courses will have to stop altogether.",
    "Researchers at a university in the north have counted the puffins on four islands for ten years. "
    "Their number fell from about eighty thousand pairs to fifty-two thousand. The birds feed their "
    "young on sand eels, which have become rare since the water grew warmer. In years with few eels "
    "only one nest in five held a chick in August. The researchers propose to stop fishing for sand "
    "eels within thirty kilometres of the islands. The fishermen's union answers that its members "
    "take only a small part of them, and asks for another study first.",
    "A bakery in the old harbour has begun to sell yesterday's bread at half price from a machine in "
    "its wall. The machine holds sixty loaves and takes cards and coins. In the first month it sold "
    "nine hundred loaves, which would otherwise have become animal feed. The baker, Ines Moreau, says "
    "that the machine has paid for itself and that most customers are students and pensioners. Two "
    "other bakeries have asked her for the plans. She does not expect to sell fewer fresh loaves, "
    "since those are bought in the morning and the others at night.",
    "The railway company will run longer trains between the coast and the capital from December on. "
    "Each train gets two more carriages, so that four hundred and eighty passengers find a seat "
    "instead of three hundred and twenty. The platforms at Milden and Orst are too short for them, so "
    "the last two doors will stay shut there. The journey takes four minutes longer than today. "
    "Tickets will cost the same until the summer. A passengers' association welcomed the plan, but "
    "complained that the first train still leaves only at ten to six.",
    "An engineer in Porto has built a loudspeaker from cork. The material is usually cut into stoppers "
    "for wine, and what is left over is ground. She presses the ground cork into shells that weigh a "
    "third of wooden ones. In tests by a magazine the speakers did well with voices and less well with "
    "deep notes. Each pair costs two hundred and ninety euros and takes six days to make. So far she "
    "has sold four hundred pairs, most of them to cafés. Next year she wants to hire two people and "
    "move out of her father's garage.",
)

FACTS = (
    (
        "Battery policy",
        "Batteries are covered for 24 months if their capacity falls below 70 percent.",
    ),
    (
        "Returns",
        "Goods may be returned within 30 days in their packaging; the sender pays the postage.",
    ),
    (
        "Opening hours",
        "The workshop in Lund is open from Tuesday to Saturday, from 9 to 17 o'clock.",
    ),
    (
        "Models",
        "The K2 has a range of 85 kilometres, the K3 of 120 kilometres, the K3 Plus of 160.",
    ),
    (
        "Charging",
        "The K3 charges in four hours with the small charger and in ninety minutes with the fast one.",
    ),
    (
        "Weight",
        "Without its battery the K2 weighs 14.2 kilograms, the K3 15.8 and the K3 Plus 17.1.",
    ),
    (
        "Insurance",
        "Theft is insured for the first year if the bicycle was locked to a fixed object.",
    ),
    ("Service", "The first service is free after 300 kilometres; later ones cost 89 euros each."),
    ("App", "The app shows range and position and needs version 12 of the telephone's system."),
    (
        "Spare parts",
        "Spare parts are kept for ten years after the last bicycle of a model was sold.",
    ),
)
QUESTIONS = (
    "How far can I ride the K3 Plus, and how heavy is it? Quote the sentences you rely on.",
    "My battery holds only 65 percent after a year. What am I entitled to? Quote the source.",
    "Can I bring the bicycle on a Monday? Answer with the exact opening hours.",
    "What does the second service cost? Quote the sentence.",
    "How long does the K3 take to charge with either charger? Use the words of the source.",
    "I want to return my bicycle after three weeks. What do I have to do? Quote the rule.",
    "Is theft insured? Under which condition? Quote the source.",
    "Which telephone do I need for the app? Answer with the sentence of the source.",
    "For how long will I get spare parts? Quote the sentence.",
    "Compare the ranges of all models. Use the words of the source.",
)

PEOPLE = (
    ("Ada Lindgren", "31", "Uppsala", "ada.lindgren@example.org", "12 March"),
    ("Tomás Vidal", "45", "Valencia", "t.vidal@example.org", "3 May"),
    ("Mei Tanaka", "28", "Sendai", "mei.tanaka@example.org", "19 June"),
    ("Oluwaseun Ade", "52", "Ibadan", "o.ade@example.org", "7 July"),
    ("Freja Holm", "39", "Aarhus", "freja.holm@example.org", "30 August"),
    ("Marek Nowak", "61", "Gdynia", "marek.nowak@example.org", "14 September"),
    ("Priya Raman", "24", "Chennai", "priya.raman@example.org", "2 October"),
    ("Luca Ferri", "47", "Bologna", "luca.ferri@example.org", "21 November"),
    ("Hana Novotná", "35", "Brno", "hana.novotna@example.org", "9 January"),
    ("Samuel Ortiz", "58", "Cusco", "samuel.ortiz@example.org", "26 February"),
)

TOOLS = {
    "disk": "Filesystem  Size  Used Avail Use% Mounted on\n/dev/sda1    40G   {a}G   {b}G  {p}% /\n"
    "/dev/sdb1   500G  {c}G  {d}G  {q}% /var/lib/data\ntmpfs         8G    1G    7G  12% /run",
    "pods": "NAME                     READY   STATUS    RESTARTS   AGE\n"
    "api-7c9f6d5b8-x2k4q      1/1     Running   {a}          {b}d\n"
    "worker-5d8c7f9b6-m8n2p   1/1     Running   {p}          {b}d\n"
    "cache-0                  1/1     Running   0          {c}d",
    "log": "2026-03-0{x} 10:14:0{x} INFO  request id={c} path=/orders status=200 ms={a}\n"
    "2026-03-0{x} 10:14:0{x} INFO  request id={d} path=/orders status=200 ms={b}\n"
    "2026-03-0{x} 10:14:0{x} ERROR request id={q} path=/orders status=500 ms={p} database timeout",
    "json": '{{"id": {a}, "name": "sensor-{x}", "room": "B{b}", "celsius": {p}.5, "battery": {q}}}\n'
    '{{"id": {b}, "name": "sensor-{x}", "room": "B{c}", "celsius": {p}.0, "battery": {q}}}\n'
    '{{"id": {c}, "name": "sensor-{x}", "room": "B{d}", "celsius": {p}.5, "battery": {q}}}',
    "tests": "tests/test_api.py::test_get PASSED\ntests/test_api.py::test_put PASSED\n"
    "tests/test_api.py::test_delete FAILED (expected {a}, got {b})\n"
    "tests/test_cart.py::test_total PASSED\n{c} passed, 1 failed in {p}.{x} s",
}


def numbers(seed: int) -> dict[str, int]:
    """Some that differ from call to call."""
    return {
        "a": 10 + seed,
        "b": 28 - seed,
        "c": 100 + 7 * seed,
        "d": 400 - 7 * seed,
        "p": 30 + 2 * seed,
        "q": 80 - 3 * seed,
        "x": 1 + seed % 9,
    }


def agent(tool: str, seed: int) -> str:
    """A transcript in which a tool answers twice almost the same, and once more to come."""
    outputs = [TOOLS[tool].format(**numbers(seed + step)) for step in (0, 1)]
    return (
        f"You watch a system. Tool: {tool}.\n\nCall 1:\n{outputs[0]}\n\nCall 2:\n{outputs[1]}\n\n"
        "Repeat the output of call 2 line by line, then list what changed since call 1."
    )


def extraction(number: int) -> str:
    """A letter whose facts are to be given as JSON."""
    name, age, city, mail, day = PEOPLE[number]
    other = PEOPLE[(number + 3) % len(PEOPLE)]
    return (
        f"{name}, aged {age}, of {city}, wrote on {day} to ask for a refund. The order was placed "
        f"together with {other[0]} of {other[2]}. Answers go to {mail}, a copy to {other[3]}.\n\n"
        'Extract as JSON: a list "people", each with "name", "age", "city" and "email" (null if '
        "not given). Give the JSON only."
    )


def prompts() -> list[dict[str, str]]:
    """All sixty, the groups one after the other."""
    facts = "\n".join(f"[{title}] {text}" for title, text in FACTS)
    groups = {
        "chat": list(CHAT),
        "code_edit": [
            f"Copy this code exactly, but rename `{old}` to `{new}`.\n\n```python\n{code}```"
            for code, (old, new) in zip(CODE.values(), EDITS, strict=True)
        ],
        "summary": [
            f"{task}\n\n{article}"
            for article in ARTICLES
            for task in ("Summarize in three sentences.", "List the key facts as bullet points.")
        ],
        "rag": [f"Sources:\n{facts}\n\nQuestion: {question}" for question in QUESTIONS],
        "extraction": [extraction(number) for number in range(10)],
        "agent": [agent(tool, seed) for seed in (0, 5) for tool in TOOLS],
    }
    return [
        {"id": f"own-{group}-{number}", "category": group, "prompt": prompt}
        for group, made in groups.items()
        for number, prompt in enumerate(made)
    ]


if __name__ == "__main__":
    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in prompts()]
    (Path(__file__).parent / "own.jsonl").write_text("".join(lines), encoding="utf-8")
