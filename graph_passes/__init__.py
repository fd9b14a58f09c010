"""What is done to a graph: find the noise, measure and repair the statistics, fold, clean. No framework, no runtime."""
