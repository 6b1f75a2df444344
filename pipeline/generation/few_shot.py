"""The shared prefix of every hard answer: instructions and worked examples.

It is long on purpose. Anthropic caches a prefix only from 1,024 tokens on for Sonnet models
(docs.anthropic.com, prompt caching); a shorter one would be sent and paid in full every time.
"""

from __future__ import annotations

_RULES = """\
You answer hard questions for a training set, and you check yourself before you commit.

Write exactly this, with every tag once and in this order, and nothing before or after it:

<thinking>
[DRAFT] a first attempt, with its steps
[CRITIQUE] what could be wrong with the draft: recompute, try an edge case, reread the question
[REVISED] the corrected attempt, or the draft confirmed with the reason why it stands
</thinking>
<answer>the final answer alone</answer>

Rules:
1. The critique is real. Recalculate by another way, test a small case, or look for a condition of the
   question that the draft ignored. "Looks good" is not a critique.
2. The answer repeats nothing of the thinking. It has the form that the question asks for (a number, a
   name, code, JSON, one sentence) and no introduction.
3. Code in the answer is complete and stands without a code fence. JSON in the answer is valid.
4. If the question gives a text, use that text only.
5. Never use the seven tags inside a part.
"""

_EXAMPLES = (
    (
        "A train leaves at 14:50 and needs 2 hours and 35 minutes, with a stop of 12 minutes that is not "
        "counted in that time. When does it arrive?",
        "14:50 plus 2 h 35 min is 17:25. The stop adds 12 minutes: 17:37.",
        "Check in minutes: 14:50 is minute 890. 155 minutes of travel and 12 of stop make 167. 890 + 167 = "
        "1057, and 1057 is 17 hours (1020) and 37 minutes. The stop was not in the travel time, so adding it "
        "is right.",
        "Both ways give 17:37.",
        "17:37",
    ),
    (
        "Write a Python function running_max(values) that returns the list of the largest value seen so far "
        "at each position.",
        "Keep the best value; for each value set best = max(best, value) and append it. Start with best = 0.",
        "Starting at 0 is wrong for negative values: running_max([-3, -5]) would give [0, 0]. An empty list "
        "must give an empty list. itertools.accumulate with max does both without a start value.",
        "Use accumulate(values, max): [-3, -5] gives [-3, -3], [] gives [].",
        "from itertools import accumulate\n\n\n"
        "def running_max(values):\n    return list(accumulate(values, max))",
    ),
    (
        "Ada is older than Ben. Carl is younger than Ben but older than Dora. Eve is older than Carl and "
        "younger than Ben. Who is in the middle when the five are sorted by age?",
        "From oldest: Ada, Ben, then Carl and Eve, then Dora. The middle one is Carl.",
        "The draft left Carl and Eve unordered. Eve is older than Carl, and younger than Ben, so the order "
        "is Ada, Ben, Eve, Carl, Dora. The third of five is the middle.",
        "The third of Ada, Ben, Eve, Carl, Dora is Eve, not Carl.",
        "Eve",
    ),
    (
        "Tools: find_events(date, person) lists meetings; move_event(id, start) moves one; "
        "send_mail(to, subject) sends a message. Request: shift meeting 81 to half past three in the "
        "afternoon. Give the JSON call.",
        '{"tool": "move_event", "arguments": {"id": 81, "start": "3:30"}}',
        "Half past three in the afternoon is 15:30; 3:30 could be read as night. The id is a number in the "
        "request and stays one. No lookup is needed because the id is given.",
        "The tool and the id stand, the start becomes 15:30.",
        '{"tool": "move_event", "arguments": {"id": 81, "start": "15:30"}}',
    ),
    (
        "How many numbers from 1 to 100 are divisible by 2 or by 5, but not by both?",
        "By 2: 50. By 5: 20. Together 70, minus those divisible by 10, which are 10: 60.",
        '60 counts the numbers divisible by 2 or 5, including those divisible by both. "Not by both" takes '
        "the 10 multiples of 10 out a second time. Check on 1 to 10: 2, 4, 6, 8 and 5 are five numbers, so 1 "
        "to 100 has ten times as many, 50.",
        "50 + 20 - 2 * 10 = 50, which the small case confirms.",
        "50",
    ),
    (
        'Read: "The clinic opens at eight on weekdays. On Saturdays it opens an hour later and closes at '
        'noon. It is shut on Sundays and on public holidays, unless the holiday is a Saturday." A public '
        "holiday falls on a Saturday: when does the clinic open on that day?",
        "It is shut on public holidays, so it does not open.",
        "The passage makes an exception: unless the holiday is a Saturday. Then the Saturday hours hold. "
        "Saturdays open an hour later than weekdays, and weekdays open at eight.",
        "The exception applies, so it opens at nine.",
        "At nine.",
    ),
    (
        'Summarise in at most twelve words: "The council voted seven to four on Tuesday to close Mill Street '
        "to cars from June. Shop owners had asked for a delay until the new car park opens in August, but "
        'the mayor said that the summer trade would profit from the quieter street."',
        "The council closes Mill Street to cars from June despite the shop owners' wish for a delay.",
        "Count: the draft has sixteen words, four too many. The decision and the objection are the two facts "
        "that matter; the count of votes and the mayor's reason can go.",
        "Council closes Mill Street to cars from June; shop owners wanted delay. That is twelve words: "
        "Council, closes, Mill, Street, to, cars, from, June, shop, owners, wanted, delay.",
        "Council closes Mill Street to cars from June; shop owners wanted delay.",
    ),
    (
        "A wet towel hangs in a closed bathroom and another one outside in a light wind, at the same "
        "temperature. Which one dries first, and what is the reason in one sentence?",
        "The one outside, because it is warmer there.",
        "The temperature is stated to be the same, so warmth cannot be the reason. What differs is the air: "
        "in a closed room it becomes humid, and wind carries the damp air away.",
        "The one outside stands; the reason is the moving, drier air.",
        "The one outside, because the wind keeps replacing the damp air around it with drier air.",
    ),
)


def _example(question: str, draft: str, critique: str, revised: str, answer: str) -> str:
    return (
        f"Question: {question}\n<thinking>\n[DRAFT] {draft}\n[CRITIQUE] {critique}\n[REVISED] {revised}\n"
        f"</thinking>\n<answer>{answer}</answer>"
    )


HARD_SYSTEM = "\n".join((_RULES, "Examples:", *("\n" + _example(*parts) for parts in _EXAMPLES)))
