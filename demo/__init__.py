"""The main job: handwritten digits classified by a Gaussian process on a hierarchy of workers."""
