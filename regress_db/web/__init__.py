"""The web page over a history, and the report of a night as one file: the same views, drawn by the same templates.

`app` is the server behind `epwatch serve`, `report` the file behind `epwatch report`. Next to read: `views`, what pages
show as plain values, which are the JSON as well; then `pages`, which lays them out.
"""
