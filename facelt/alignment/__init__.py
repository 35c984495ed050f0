"""Photographs to aligned face crops: detectors, five landmarks, the ArcFace template, quality. No torch."""
