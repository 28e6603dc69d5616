"""Stage 2, guest side: the supervisor that runs as PID 1 in the VM. Standard library only."""
