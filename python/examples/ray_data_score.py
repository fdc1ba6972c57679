"""Scores Parquet files with a recommender on all machines of a Ray cluster.

usage: ray_data_score.py MODEL 'rows/*.parquet' OUT_DIR [--workers 2]      (pip install "ray[data]")

A worker loads the model once and scores one block of rows after another; the scores are written beside the rows' columns. The tables of a compressed
model take megabytes, so every worker has its own copy and nothing is looked up over the network.
"""

import argparse

import ray

import scrimp


class Score:
    """A worker with the model in memory."""

    def __init__(self, model):
        scrimp.set_num_threads(1)
        self.rec = scrimp.Rec.load(model)

    def __call__(self, rows):
        rows["score"] = self.rec.score(rows)
        return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    scored = ray.data.read_parquet(args.data).map_batches(
        Score, fn_constructor_args=(args.model,), concurrency=args.workers, num_cpus=1, batch_format="pandas", batch_size=8192
    )
    scored.write_parquet(args.out)
    print(scored.stats())


if __name__ == "__main__":
    main()
