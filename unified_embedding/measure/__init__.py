"""How a served embedder is measured: arrivals, latencies, the server's CPU, stages, reports.

Used by the Locust files in `loadtest/` and by the programs in `bench/`, so that all of them
mean the same thing by a word. Needs the extra `load` (hdrhistogram, psutil, tritonclient).

Words:
    offered: requests that were due, whether they could be sent or not.
    dropped: due requests that were not sent, because too many were in flight already.
    latency: from the moment a request was due until its whole answer was read.
    goodput: requests answered correctly and in time, per second.
    CPU-ms per image: user and system time of the server's processes, divided by the pictures
        they answered.
"""
