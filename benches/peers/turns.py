"""Commands run in turn, round after round, so that whatever disturbs the machine disturbs all of them alike."""

import os
import re
import statistics
import subprocess


def in_turn(commands, rounds):
    """Runs commands (label: arguments) that print "... N ms a step at best, M ms median ..."; gives the best step of each, and the
    median of the rounds' medians."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")}
    best, medians = {}, {label: [] for label in commands}
    for _ in range(rounds):
        for label, command in commands.items():
            output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
            print(" ", label, "|", output.replace("\n", " |"), flush=True)
            found, median = map(float, re.search(r"(\d+) ms a step at best, (\d+) ms median", output).groups())
            best[label] = min(best.get(label, found), found)
            medians[label].append(median)
    return best, {label: statistics.median(found) for label, found in medians.items()}


def ratios(title, pairs, best, medians):
    """Prints what each pair (words: one label over another) comes to, of the best steps and of the medians."""
    told = (
        f"{words} {best[over] / best[under]:.2f} ({medians[over] / medians[under]:.2f})"
        for words, (over, under) in pairs.items()
    )
    print(f"{title}, best (medians): {', '.join(told)}", flush=True)
