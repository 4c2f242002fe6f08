"""The first 2,000 patients of the Diabetes-130 table in the order of a hash of their numbers, with all their rows.

Usage: subset.py diabetic_data.csv.gz subset.csv [patients]
"""
import csv
import gzip
import hashlib
import sys

source, target = sys.argv[1:3]
patients = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
with gzip.open(source, "rt", newline="") as file:
    rows = list(csv.DictReader(file))
numbers = {row["patient_nbr"] for row in rows}
chosen = set(sorted(numbers, key=lambda n: hashlib.sha256(n.encode()).digest())[:patients])
with open(target, "w", newline="") as file:
    writer = csv.DictWriter(file, rows[0].keys())
    writer.writeheader()
    writer.writerows(row for row in rows if row["patient_nbr"] in chosen)
