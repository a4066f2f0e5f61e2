"""Batch runs: pictures in, relevance and renderings out, one record for each picture and target."""
