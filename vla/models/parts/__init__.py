"""What architectures are made of, one file for each kind of part.

mlp.py          perceptrons, and the head that makes a chunk of actions
attention.py    multi-head attention and the transformer block
text.py         text encoders: bag of words, LSTM, transformer; pooling of tokens
distilbert.py   DistilBERT as a text encoder
towers.py       vision towers: the interface, and plain convolutions
published_towers.py  ResNet-18, MobileNetV2, EfficientNet-B0, fresh or pretrained
clip_towers.py  CLIP's pair of towers, fresh or pretrained
read_out.py     positions and features read out of a feature map by attention
policy.py       the policy that several architectures are: a tower, a text encoder, queries, an action head
denoising.py    the network that generative action heads call at every step, and its noise schedule
"""
