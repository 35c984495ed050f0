"""Parametric synthetic faces: nobody's picture, everybody's test data. numpy and opencv only."""
