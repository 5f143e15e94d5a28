//! What is shipped around the program: units, packages, a container image, dashboards and alerts.

mod systemd;
