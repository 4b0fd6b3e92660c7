"""Other engines beside puna: what they run, how their models are made, and a worker process for each."""
