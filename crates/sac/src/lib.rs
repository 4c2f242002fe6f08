//! Soft Actor-Critic.
