"""What runs on the hosts: the agent, and the trainer that it watches."""
