"""vidpipe: videos to sharded TFRecords to one fused, trained video classifier.

The modules read in the order of the data path: spec, config, manifest, sampling, video, records,
shards, convert, then input_pipeline, backbone, model, feature_cache, checkpoint, train, evaluate, predict.
Importing the package loads none of them, so that decoding workers stay free of TensorFlow.
"""

__version__ = "0.1.0"
