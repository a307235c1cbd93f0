"""From a folder of pictures to batches: scan, captions, buckets, the plan of an epoch, caches."""
