"""LeRobot's data set format, version 3.0, which came with LeRobot 0.4.

meta/info.json                            what the columns mean, rate, counts, where the files lie
meta/stats.json                           statistics of every column
meta/tasks.parquet                        the commands, numbered
meta/episodes/chunk-000/file-000.parquet  one row an episode: length, commands, files, statistics
data/chunk-000/file-000.parquet           one row a frame; pictures of dtype `image` are in it
videos/CAMERA/chunk-000/file-000.mp4      pictures of dtype `video`
"""
