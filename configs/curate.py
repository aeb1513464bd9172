"""Curates the concepts of an image-text corpus: `main.py --config=configs/curate.py`.

Needs `--config.corpus.directory`, `--config.clip` and `--workdir`. The result is in
`WORKDIR/annotations`; run the same command again to continue after an interruption.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The published method: exact search, 8 neighbours, exact matches, clusters."""
    config = ml_collections.ConfigDict()
    config.job = "curate"
    config.seed = 0

    config.corpus = ml_collections.ConfigDict({"directory": "", "split": "train"})
    # Corpora in which neighbours are searched, each like `corpus`; empty: the corpus itself.
    # A split may be a part, in whole shards: "train[:10%]", "train[8shard:]", "train[::4]".
    config.index = ()
    # A CLIP or SigLIP: Hugging Face's or open_clip's folder or hub id, or OpenAI's .pt file; e.g.
    # openai/clip-vit-base-patch32 or google/siglip2-base-patch16-224.
    config.clip = ""
    config.prompt = "a photo of a {}"
    # Image embeddings that are there already, made with this CLIP: a directory, local or in a
    # bucket, of img_emb_*.npy and metadata_*.parquet as clip-retrieval writes them, joined by key.
    # Else empty.
    config.image_embeddings = ""

    config.neighbours = 8
    # "clustered": an image is compared only with those in nearby k-means cells; for indices of many
    # millions of images. The summary gives the measured recall.
    config.search = "exact"
    config.cells = 0  # of the clustered search; 0: twice the square root of the index
    config.cell_recall = 0.95  # share of the neighbours to be found; decides how many cells
    config.match = "exact"  # or "substring": the published code, where "cat" matches "cattle"
    config.capacity = 64  # concepts kept per image; the summary counts truncated archives
    config.clusters = True

    config.dtype = ""  # of CLIP: "float32" or "bfloat16"; empty: bfloat16 on accelerators
    config.batch_size = 128  # images per device
    config.search_rows = 65_536  # queries searched in one pass over the index
    config.tile_rows = 0  # index rows per product; 0: 5,120 on CPUs, 65,536 on accelerators
    config.recall = 1.0  # below 1: approximate search on TPUs; the summary gives its recall

    # Embeddings, reusable by other runs; local or in a bucket. Empty: WORKDIR/embeddings.
    config.embeddings = ""
    # Where copies of a bucket's embeddings are kept, and how much of them. Empty: the system's
    # directory for temporary files.
    config.staging = ""
    config.staging_gb = 100.0
    # "0/4": process 0 of 4, which takes shards 0, 4, 8, …; empty: JAX's process index and count.
    config.share = ""
    config.parquet = True
    config.page_images = 24  # images on WORKDIR/examples.html
    return config
