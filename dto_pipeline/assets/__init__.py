"""Files the package brings: a stand-in body in SMPL's format, joint regressors, a small depth network, demo.yaml."""
