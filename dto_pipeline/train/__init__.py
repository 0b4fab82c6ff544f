"""The thin trainer: label shards in, a metric multi-person mesh network out. Knows no run and moves no shards."""
