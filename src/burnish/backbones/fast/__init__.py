"""The same function sooner: how a network is folded, packed, traced and cut; no value that it gives changes beyond rounding.

fold    frozen BatchNorm inside the convolution before it    frozen  the fast form for the CPU, weights packed once
half    bfloat16, and where the processor has it             int8    frozen features in 8 bits, where they are faster
graphs  a forward pass as a graph of chosen layers            reads   who reads what a layer gives
cut     what is frozen runs once an image, what learns runs each step
attention  its gradient in bfloat16                           convolved  convolution and activation as one step of training
kernels    operations of torch's computed otherwise, and one that spoils memory
"""
