"""What a process needs to be a rank: its place in the job, its devices and machine, its end. Never imports torch."""
