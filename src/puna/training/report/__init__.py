"""Files of a run for people: metrics.jsonl, TensorBoard's event files and report.html.

`MetricsWriter`, `TensorBoardWriter` and `ReportWriter` are observers of the loop. Everything else reads their files,
also while another process trains.
"""
