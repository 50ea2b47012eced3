"""Counts the n-grams of a corpus on Spark, for `trainer mine --counts`.

Reads what `trainer tokenize --format parquet` wrote, and writes a directory of counts that holds
every n-gram which can be among the S most frequent:

    spark-submit count_ngrams.py --tokens tokens --out counts --max-n 5 --min-count 5 --max-fgrams 1000000
    trainer mine --input tokens --tokenizer tokenizer.json --counts counts --max-n 5 --min-count 5 \
        --max-fgrams 1000000 --out fgrams.bin

One scan a length, pruned as docs/method.md says: an n-gram is counted only if its first and its last
n-1 ids survived the scan before; from length 3 on it must occur --min-count times, and more often than
the S-th best of the shorter ones. Each scan is written before the next begins, the folder `complete`
last, so a directory without it is not finished.
"""

import argparse
import json

from pyspark.sql import SparkSession
from pyspark.sql import functions as F


def ngrams(documents, n):
    """Every n-gram of every document, one a row: its ids."""
    grams = F.expr(f"transform(sequence(1, size(ids) - {n - 1}), i -> slice(ids, i, {n}))")
    return documents.where(F.size("ids") >= n).select(F.explode(grams).alias("ids"))


def pruned(grams, survivors, n):
    """Those whose first and last n-1 ids are among the survivors of the scan before."""
    part = survivors.select(F.col("ids").alias("part"))
    for start in (1, 2):
        grams = grams.join(part, F.slice("ids", start, n - 1) == F.col("part"), "left_semi")
    return grams


def histogram(counts):
    """How many n-grams occur how often; on the driver, as there are few different counts."""
    return {row["count"]: row["ngrams"] for row in counts.groupBy("count").agg(F.count("*").alias("ngrams")).collect()}


def cut(histograms, limit):
    """The count of the `limit`-th best n-gram of these histograms; 0 while there are fewer."""
    total = {}
    for one in histograms:
        for count, ngrams_ in one.items():
            total[count] = total.get(count, 0) + ngrams_
    seen = 0
    for count in sorted(total, reverse=True):
        seen += total[count]
        if seen >= limit:
            return count
    return 0


def tokenizer_of(spark, tokens):
    """The tokenizer's hash, from the manifest beside the tokens."""
    manifest = spark.read.text(f"{tokens}/tokens.json", wholetext=True).first()[0]
    return json.loads(manifest)["tokenizer_hash"]


def count(spark, tokens, out, max_n, min_count, max_fgrams):
    """Writes the counts; gives back the number of n-grams written, by length."""
    documents = spark.read.parquet(f"{tokens}/*.parquet").select("ids")
    total = documents.agg(F.sum(F.size("ids"))).first()[0]
    histograms, written, survivors, needed = [], {}, None, 1
    for n in range(2, max_n + 1):
        grams = ngrams(documents, n)
        if survivors is not None:
            grams = pruned(grams, survivors, n)
        counts = grams.groupBy("ids").count().where(F.col("count") >= needed)
        path = f"{out}/n={n}"
        counts.write.mode("overwrite").parquet(path)
        counts = spark.read.parquet(path)
        histograms.append(histogram(counts))
        written[n] = sum(histograms[-1].values())
        needed = max(min_count, cut(histograms, max_fgrams) + 1)
        survivors = counts.where(F.col("count") >= needed)
    complete = {
        "tokenizer_hash": tokenizer_of(spark, tokens),
        "max_n": max_n,
        "min_count": min_count,
        "max_fgrams": max_fgrams,
        "tokens": total,
    }
    spark.createDataFrame([complete]).coalesce(1).write.mode("overwrite").json(f"{out}/complete")
    return written


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", required=True, help="directory that `trainer tokenize --format parquet` wrote")
    parser.add_argument("--out", required=True, help="directory of counts to write")
    parser.add_argument("--max-n", type=int, default=5, help="K: the longest n-gram, 2 to 8")
    parser.add_argument("--min-count", type=int, default=5, help="least count from length 3 on")
    parser.add_argument("--max-fgrams", type=int, required=True, help="S: f-grams that a set made of the counts may have")
    parser.add_argument("--master", help="where to run, when not started by spark-submit")
    args = parser.parse_args()
    if not 2 <= args.max_n <= 8:
        parser.error(f"--max-n is {args.max_n}, must be 2 to 8")
    if args.min_count < 1 or args.max_fgrams < 1:
        parser.error("--min-count and --max-fgrams must be at least 1")
    builder = SparkSession.builder.appName("count-ngrams")
    if args.master:
        builder = builder.master(args.master)
    spark = builder.getOrCreate()
    try:
        written = count(spark, args.tokens, args.out, args.max_n, args.min_count, args.max_fgrams)
    finally:
        spark.stop()
    print(json.dumps({"out": args.out, "ngrams_by_length": written}))


if __name__ == "__main__":
    main()
