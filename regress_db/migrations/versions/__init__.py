"""One module per revision: four digits and what it does. A released one is never edited."""
