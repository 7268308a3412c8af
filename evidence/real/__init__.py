"""Which of the study's claims hold on a real model: SmolLM2-135M-Instruct, trained by the command that users type."""
