"""What measures: interventions, sweeps, scores and costs. A change here has tables made anew."""
