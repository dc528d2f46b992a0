"""Published pretrained networks for scores and for the perceptual loss; their weights never change."""
