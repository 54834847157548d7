"""What every denoiser shares: noise schedules, sampling plans and solvers."""
