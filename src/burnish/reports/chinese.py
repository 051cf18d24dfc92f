"""The report in Chinese; English is the key."""

from __future__ import annotations

CHINESE = {
    "burnish report": "burnish 报告",
    "data": "数据",
    "model": "模型",
    "Made by burnish %(version)s. This page is complete in itself: it loads nothing and sends nothing.": (
        "由 burnish %(version)s 生成。本页自成一体：不加载、不发送任何内容。"
    ),
    "Verdict": "结论",
    "%(n)s points": "%(n)s 个百分点",
    "%(low)s to %(high)s": "%(low)s 至 %(high)s",
    "Accuracy": "准确率",
    "Mean average precision (mAP)": "平均精度均值（mAP）",
    "%(score)s with its 95 %% interval, n = %(n)s test images that were looked at once, after every choice was made.": (
        "%(score)s及其 95 %% 区间，n = %(n)s 张测试图像；所有选择做完之后才看过一次。"
    ),
    "Kept for use: the frozen probe (%(name)s), chosen without the test images.": (
        "保留使用：冻结骨干的探针（%(name)s），选择时未使用测试图像。"
    ),
    "Kept for use: the fine-tuned model (%(name)s), chosen without the test images.": (
        "保留使用：微调后的模型（%(name)s），选择时未使用测试图像。"
    ),
    "The run took %(seconds)s of a budget of %(budget)s.": "本次运行用时 %(seconds)s，预算为 %(budget)s。",
    "The run took %(seconds)s.": "本次运行用时 %(seconds)s。",
    "The frozen probe learnt from the %(all)s training and validation images, the fine-tuned model from the %(train)s training "
    "images.": "冻结探针从 %(all)s 幅训练和验证图像中学习，微调后的模型只从 %(train)s 幅训练图像中学习。",
    "The frozen probe sees images at %(probe)s pixels, the fine-tuned model at %(tuned)s.": (
        "冻结探针以 %(probe)s 像素查看图像，微调后的模型以 %(tuned)s 像素查看。"
    ),
    "Scores": "得分",
    "Score on the test images": "测试图像上的得分",
    "Frozen probe": "冻结探针",
    "Fine-tuned": "微调后",
    "Commonest class": "最常见类别",
    "Trained from scratch": "从零训练",
    "Against simpler answers, on the same images": "与更简单的做法比较（同一批图像）",
    "Baselines": "基线",
    "Baseline": "基线",
    "The kept model has over it": "保留模型高出（百分点）",
    "The same training from other seeds": "换随机种子重复训练",
    "Trained %(n)s times on the same splits with other seeds, the tuned model reached %(mean)s on average, with a standard "
    "deviation of %(sd)s between trainings (the interval above is that of the test images).": (
        "在相同划分上用不同种子训练 %(n)s 次，微调模型平均达到 %(mean)s，各次训练之间的标准差为 %(sd)s"
        "（上面的区间来自测试图像的抽样）。"
    ),
    "With %(n)s of the seeds nothing was trained; on the same splits the frozen model reached %(mean)s on average, with a "
    "standard deviation of %(sd)s.": (
        "其中 %(n)s 个种子没有进行训练；在相同划分上冻结模型平均达到 %(mean)s，标准差为 %(sd)s。"
    ),
    "seed %(seed)s: %(accuracy)s": "种子 %(seed)s：%(accuracy)s",
    "What was tried, and why": "尝试了什么，为什么",
    "The reasons are shown in English, as the run wrote them down.": "以下理由由运行时写下，保持英文。",
    "Learning": "学习过程",
    "One dot an epoch. The training loss is that of altered images and smoothed labels, so it may lie above the validation "
    "loss.": "每个点是一轮。训练损失来自增强后的图像和平滑后的标签，因此可能高于验证损失。",
    "Epoch by epoch": "逐轮记录",
    "Epochs": "各轮",
    "Epoch": "轮次",
    "Image size": "图像尺寸",
    "Training loss": "训练损失",
    "Validation accuracy": "验证准确率",
    "Validation loss": "验证损失",
    "Learning rate": "学习率",
    "Time": "时间",
    "Images/s": "张/秒",
    "Loss, nats": "损失（奈特）",
    "training": "训练",
    "validation": "验证",
    "Learning rate at the end of the epoch": "每轮结束时的学习率",
    "learning rate": "学习率",
    "What is taken for what": "哪些类别被混淆",
    "Rows are the true classes, columns the answers of the kept model. The stronger the colour, the larger the share of the row; "
    "blue is right, copper is wrong. %(wrong)s of %(n)s answers are wrong.": (
        "行是真实类别，列是保留模型的回答。颜色越深，在该行中占比越大；蓝色为正确，铜色为错误。"
        "%(n)s 个回答中有 %(wrong)s 个错误。"
    ),
    "Confusion matrix": "混淆矩阵",
    "All %(n)s classes, in the order of the table below sorted by class: row by row from the top, column by column from the "
    "left": "全部 %(n)s 个类别，顺序与下表按类别排序时相同：自上而下为行，自左而右为列",
    "Confusion matrix as a map; the pairs beside it are its most frequent confusions": (
        "以图表示的混淆矩阵；旁边列出最常见的混淆"
    ),
    "The most frequent confusions": "最常见的混淆",
    "True class": "真实类别",
    "Answer": "回答",
    "Images": "图像数",
    "Of the class": "占该类别",
    "Class by class": "逐类结果",
    "Recall: of the images of a class, how many are recognised, with a 95 %% interval. Precision: of the images given that name, "
    "how many deserve it. The headings sort.": (
        "召回率：某类图像中被认出的比例，附 95 %% 区间。精确率：被判为该类的图像中判对的比例。点击表头可排序。"
    ),
    "Average precision: how well the class ranks its images before the others, whatever the threshold. Threshold: from which "
    "probability on the class is said, set on images kept apart from these.": (
        "平均精度：不论阈值，该类图像排在其他图像之前的程度。阈值：概率达到多少即报出该类，由另外的图像确定。"
    ),
    "These intervals count images, not groups: where the images of a group are alike, they are too narrow.": (
        "这些区间按图像而非分组计算：同组图像彼此相似时，区间偏窄。"
    ),
    "Scores by class": "各类得分",
    "Class": "类别",
    "Test images": "测试图像",
    "Recall": "召回率",
    "Precision": "精确率",
    "Average precision": "平均精度",
    "Threshold": "阈值",
    "no test images": "无测试图像",
    "never answered": "从未给出",
    "Worst mistakes": "最严重的错误",
    "Mistakes, image by image": "逐图列出的错误",
    "The images whose classes cost the kept model most loss, with the class it was furthest off in. Look here first for missing "
    "labels.": "保留模型损失最大的图像。若怀疑标签缺失，请先看这里。",
    "The wrong answers that the kept model was surest of. Look here first for wrong labels.": (
        "保留模型最有把握却答错的图像。若怀疑标签有误，请先看这里。"
    ),
    "The second picture shows where the network found its answer (Grad-CAM); below are the training images that look most alike "
    "to it, of %(n)s looked among.": (
        "第二张图显示网络依据的位置（Grad-CAM）；下方是在 %(n)s 张训练图像中网络认为最相似的几张。"
    ),
    "The second picture shows where the network found its answer (Grad-CAM).": "第二张图显示网络依据的位置（Grad-CAM）。",
    "The maps tell of the weights: with shuffled weights they come out otherwise (rank correlation %(similarity)s).": (
        "热图确实反映权重：打乱权重后热图不同（秩相关 %(similarity)s）。"
    ),
    "Do not trust the maps: with shuffled weights they come out nearly the same (rank correlation %(similarity)s).": (
        "不要相信这些热图：打乱权重后几乎不变（秩相关 %(similarity)s）。"
    ),
    "The clock left no time for pictures of %(n)s of them; burnish explain makes them at any time.": (
        "时间预算不足，其中 %(n)s 张未生成图片；burnish explain 可随时生成。"
    ),
    "The clock left no time for pictures of them; a longer budget does, and burnish explain makes them at any time.": (
        "时间预算不足，未生成图片；延长预算即可，也可随时用 burnish explain 生成。"
    ),
    "furthest off in %(class)s": "偏差最大的类别：%(class)s",
    "Images unlike the training images": "与训练图像不同的图像",
    "Of its own test images %(value)s (%(low)s to %(high)s) lie beyond the limit that is meant for %(meant)s of familiar ones "
    "(relative Mahalanobis distance of the features, and how much in doubt the answer is).": (
        "自身测试图像中 %(value)s（%(low)s 至 %(high)s）超出界限，该界限原本只应排除 %(meant)s 的熟悉图像"
        "（特征的相对马氏距离，以及答案的不确定程度）。"
    ),
    "That is more than was meant: the test images differ from the training images, or the held-out images were few.": (
        "比预期多：测试图像与训练图像有差异，或留出图像太少。"
    ),
    "burnish predict marks such images, and with --reject declines them.": (
        "burnish predict 会标出这类图像，使用 --reject 时拒绝回答。"
    ),
    "The clock left no time to measure how fast the model answers.": "时间预算不足，未测量模型的回答速度。",
    "Least certain answers": "最没有把握的回答",
    "is %(label)s": "实为 %(label)s",
    "Confidence": "置信度",
    "Image": "图像",
    "Can the confidence be believed?": "置信度可信吗？",
    "On the test images, confidence and accuracy lie %(after)s apart on average (%(before)s before the temperature of "
    "%(temperature)s, fitted on other images, was applied): the expected calibration error, in 15 bins of confidence.": (
        "在测试图像上，置信度与准确率平均相差 %(after)s（应用在其他图像上拟合的温度 %(temperature)s 之前为 "
        "%(before)s）：即期望校准误差，按置信度分 15 组。"
    ),
    "In bins of equally many images: %(after)s (%(before)s before).": "按图像数均分各组时：%(after)s（之前 %(before)s）。",
    "Reliability diagram: share of right answers by confidence": "可靠性图：各置信度下的正确比例",
    "confidence": "置信度",
    "right": "正确",
    "On the dashed line confidence and accuracy agree. Larger dots hold more images; lines are 95 %% intervals.": (
        "虚线上置信度与准确率一致。点越大图像越多；竖线为 95 %% 区间。"
    ),
    "n = %(n)s: confidence %(confidence)s, right %(right)s": "n = %(n)s：置信度 %(confidence)s，正确 %(right)s",
    "Finding one of two classes": "找出两类之一",
    "Of the two classes the one with fewer training images. Sensitivity: of its images, how many are found. Specificity: of the "
    "others, how many are not taken for it. Precision: of what is taken for it, how much is, in the shares of these test images "
    "(%(n)s of it, %(others)s others). Thresholds come from %(held)s held-out images of it and travel in the package; what "
    "they do was measured on the test images, with 95 %% intervals.": (
        "两个类别中训练图像较少的一个。灵敏度：该类图像中被找出的比例。特异度：其他图像中未被误认的比例。"
        "精确率：被认作该类的图像中确属该类的比例，按这些测试图像的构成（该类 %(n)s 张，其他 %(others)s 张）。"
        "阈值来自该类的 %(held)s 张留出图像并随模型包保存；其效果在测试图像上测得，附 95 %% 区间。"
    ),
    "Area under the ROC curve": "ROC 曲线下面积",
    "Sensitivity and what it costs": "灵敏度及其代价",
    "Answered with": "回答方式",
    "Sensitivity": "灵敏度",
    "Specificity": "特异度",
    "the likelier class": "较可能的类别",
    "ROC: share of the class found (%), by share of the others taken for it (%)": (
        "ROC：找出的该类比例（%），按其他图像被误认的比例（%）"
    ),
    "Precision (%), by share of the class found (%)": "精确率（%），按找出的该类比例（%）",
    "When it should say “unknown”": "何时应回答“未知”",
    "Thresholds come from %(n)s held-out images and travel in the package; what they do was measured on the test images.": (
        "阈值来自 %(n)s 张留出图像并随模型包保存；其效果在测试图像上测得。"
    ),
    "They are of %(n)s groups, each of which counts as one: what is promised is of images of new groups.": (
        "它们来自 %(n)s 个组，每组按一个计；所作的保证针对新的组的图像。"
    ),
    "Answering only what is sure": "只回答有把握的",
    "Wanted": "要求",
    "Answered": "作答",
    "Right, of those": "其中正确",
    "the held-out images do not show it": "留出图像不足以证明",
    "too few held-out images to say": "留出图像太少，无法给出",
    "Sets of classes": "类别集合",
    "Hold the true class": "包含真实类别",
    "Classes in a set": "每个集合的类别数",
    "Accuracy of the answers (%), by the share of images answered (%), surest first": (
        "作答部分的准确率（%），按作答比例（%），从最有把握的开始"
    ),
    "Data": "数据",
    "%(scanned)s files scanned = %(used)s used + %(named)s set aside. Of those used, %(train)s train, %(val)s choose (val) and "
    "%(test)s prove (test).": (
        "扫描 %(scanned)s 个文件 = 使用 %(used)s + 搁置 %(named)s。使用的图像中 %(train)s 张训练，%(val)s 张用于选择"
        "（val），%(test)s 张用于证明（test）。"
    ),
    "%(skipped)s more were left out: the budget had no time for them.": "另有 %(skipped)s 张因预算时间不足未使用。",
    "%(n)s test images are nearly the same picture as one that was trained on or chosen by.": (
        "%(n)s 张测试图像与训练或选择用的图像几乎相同。"
    ),
    "On the others the accuracy is %(value)s (%(low)s to %(high)s, %(n)s images).": (
        "其余图像上的准确率为 %(value)s（%(low)s 至 %(high)s，%(n)s 张）。"
    ),
    "What the audit found": "审查发现",
    "Finding": "发现",
    "Cases": "例数",
    "The first": "前几例",
    "What to do": "如何处理",
    "All cases are in audit.csv; burnish audit writes a page with pictures.": (
        "全部列在 audit.csv 中；burnish audit 可生成带图片的页面。"
    ),
    "Set aside": "搁置的文件",
    "File": "文件",
    "Reason": "原因",
    "And %(n)s more; all are in result.json.": "另有 %(n)s 个；全部在 result.json 中。",
    "Images by class": "各类图像数",
    "Train": "训练",
    "Val": "验证",
    "Test": "测试",
    "Would more images help?": "更多图像有帮助吗？",
    "With %(factor)s times the training images (%(images)s) the frozen probe would be right on about %(accuracy)s (%(low)s to "
    "%(high)s).": (
        "训练图像增至 %(factor)s 倍（%(images)s 张）时，冻结探针的准确率约为 %(accuracy)s（%(low)s 至 %(high)s）。"
    ),
    "Heads were fitted to shares of the training images and judged on %(n)s validation images; the error is carried on as a "
    "power of their number, without a floor, so this is a hopeful view.": (
        "用部分训练图像拟合分类头，在 %(n)s 张验证图像上评判；误差按图像数的幂律外推且不设下限，因此偏乐观。"
    ),
    "measured": "实测",
    "carried on": "外推",
    "Accuracy of the frozen probe (%), by training images": "冻结探针的准确率（%），按训练图像数",
    "Cost": "代价",
    "The model has %(n)s parameters.": "模型有 %(n)s 个参数。",
    "It trained on %(rate)s images a second at %(size)s px, in the last epoch.": (
        "最后一轮以每秒 %(rate)s 张的速度训练，尺寸 %(size)s 像素。"
    ),
    "Parameters": "参数",
    "of them fitted here": "其中在此拟合的",
    "Multiply-adds of one image": "单张图像的乘加次数",
    "Package": "模型包",
    "One image through the network, p50 and p99": "单张图像通过网络的时间，p50 与 p99",
    "Images a second, in batches": "批量处理速度（张/秒）",
    "Peak memory of the run": "运行的内存峰值",
    "Energy of the run": "运行的能耗",
    "not readable here": "本机无法读取",
    "Where the time went": "时间花在哪里",
    "Settings and provenance": "设置与来源",
    "To do this again:": "重做此运行：",
    "Recipe": "配方",
    "Model": "模型",
    "Machine": "机器",
    "Splits": "划分",
    "Classes right by image (Jaccard)": "逐图类别正确度（Jaccard）",
    "Images with every class right": "所有类别都对的图像",
    "Label among the five likeliest": "真实类别在前五名中",
    "Mean recall of the classes": "各类召回率均值",
    "Mean F1 of the classes": "各类 F1 均值",
    "F1 of all classes together": "全部类别合计的 F1",
    "AUROC, mean of each class against the rest": "AUROC（各类对其余的均值）",
    "Log loss, nats (lower is better)": "对数损失（奈特，越低越好）",
    "Brier score, 0 to %(most)s (lower is better)": "Brier 分数，0 至 %(most)s（越低越好）",
}


# What the audit says of each kind of finding (burnish.data.audit.findings), titles and advice.
FINDINGS = {
    "error": "错误",
    "warning": "警告",
    "note": "提示",
    "Test or validation images that are also in train": "测试或验证图像同时出现在训练集中",
    "Take them out of one split: a score on images that were trained on proves nothing.": (
        "从其中一个划分中移除：在训练过的图像上得分什么也证明不了。"
    ),
    "Groups on both sides of a split": "同一组分布在划分两侧",
    "Move each group to one split, or leave the splits out to have them drawn.": (
        "把每组移到同一个划分，或去掉划分由 burnish 抽取。"
    ),
    "The same picture under different labels": "同一张图有不同标签",
    "Look at each and keep one label: as it is, one of them is taught wrong. The list leaves out all of them.": (
        "逐一查看并只保留一个标签：否则必有一个教错。清单建议全部排除。"
    ),
    "Files that cannot be read": "无法读取的文件",
    "Replace or remove them. They are not used.": "替换或删除。它们未被使用。",
    "Truncated files": "被截断的文件",
    "Fetch them again. They are not used.": "重新获取。它们未被使用。",
    "Files that are no images": "不是图像的文件",
    "Remove them, or convert them. They are not used.": "删除或转换。它们未被使用。",
    "Files in a format that is not read": "不支持读取的格式",
    "Save them as JPEG or PNG. They are not used.": "另存为 JPEG 或 PNG。它们未被使用。",
    "Labels that are likely wrong": "可能有误的标签",
    "Look at the first ones and mend what is wrong; some are right and merely hard.": (
        "先看前几个并改正；有些标签没错，只是图像难。"
    ),
    "Classes that a split lacks": "某个划分缺少的类别",
    "Add images of the class there, or take the class out.": "为该划分补充此类图像，或去掉此类。",
    "Files with the same bytes": "字节完全相同的文件",
    "Keep one of each.": "每组保留一个。",
    "Pictures that are nearly the same": "几乎相同的图片",
    "Keep one of each, or give them one group. Drawn splits keep them on one side.": (
        "每组保留一张，或归为同一组。抽取的划分会把它们放在同一侧。"
    ),
    "Blank images": "空白图像",
    "Remove them.": "删除。",
    "Images unlike all others": "与其他图像都不同的图像",
    "See whether they belong to the set.": "看看它们是否属于该数据集。",
    "Images that use little of their range": "只用到一小段亮度范围的图像",
    "See whether they show what they should; if so, scale them all by one factor, so that the brightest are white.": (
        "看看它们是否显示了应有的内容；如果是，用同一系数缩放全部图像，使最亮处为白色。"
    ),
    "Fewer than two classes": "不足两个类别",
    "Give each class a folder of its own: DATA/cat/1.jpg, DATA/dog/1.jpg.": (
        "每个类别一个文件夹：DATA/cat/1.jpg、DATA/dog/1.jpg。"
    ),
    "Classes that hold the same folders": "含有相同子文件夹的类别",
    "Where those are the classes, put the images of each into one folder, or list them in a CSV with the columns "
    "path,label,group.": "如果这些子文件夹才是类别，请把每个类别的图像放进一个文件夹，或用含 path,label,group 列的 CSV 列出。",
    "Labels that may be several classes": "可能包含多个类别的标签",
    "Separate classes with | where an image has several.": "一张图像有多个类别时，用 | 分隔。",
    "Classes that may stand for no label": "可能表示没有标签的类别",
    "Fill in the labels, or take the images out.": "补上标签，或去掉这些图像。",
    "Classes with few images": "图像很少的类别",
    "Add images, or merge the class with another.": "补充图像，或与其他类别合并。",
    "Unequal classes": "类别不均衡",
    "Add images of the small ones. burnish draws them more often, or weighs them more (--balance).": (
        "为小类别补充图像。burnish 会更常抽取它们或加大权重（--balance）。"
    ),
    "Classes that may be one": "可能是同一类别的类别",
    "Give both one name: apart, a model learns to tell a class from itself.": (
        "请给两者同一个名称：分开时，模型会学着把一个类别与它自己区分开。"
    ),
    "Folders that may be no class": "可能不是类别的文件夹",
    "Move them out of the data folder if they are none.": "若不是类别，请移出数据文件夹。",
    "Tiny images": "过小的图像",
    "Look for larger originals: little can be seen on them.": "寻找更大的原图：图上几乎看不清什么。",
    "Very large images": "非常大的图像",
    "Shrink them to save time; they are read as they are.": "可缩小以节省时间；目前按原样读取。",
    "Very long or tall images": "过长或过高的图像",
    "Crop them: a network sees the middle square, or a squeezed one.": "请裁剪：网络只看到中间的方形或被压扁的图。",
    "Files whose suffix says another format": "后缀与格式不符的文件",
    "Rename them; they are read by their content.": "请改名；读取时以内容为准。",
    "Images of several frames or pages": "多帧或多页图像",
    "The first one alone is used.": "只使用第一帧（页）。",
    "Images of a rare colour mode": "少见颜色模式的图像",
    "They are converted to 8-bit RGB, as everywhere in burnish.": "与 burnish 其他地方一样转换为 8 位 RGB。",
    "Images that their EXIF turns": "EXIF 指示旋转的图像",
    "They are turned upright, as everywhere in burnish.": "与 burnish 其他地方一样转正。",
    "Other files": "其他文件",
    "Nothing, if they are no images.": "若不是图像则无需处理。",
}

# Of the page of `burnish serve`.
SERVED = {
    "Ask the model": "询问模型",
    "What is on your photograph?": "照片上是什么？",
    "The model says which of %(n)s classes an image has.": "模型会说出图像属于 %(n)s 个类别中的哪些。",
    "The model names one of %(n)s classes.": "模型会给出 %(n)s 个类别中的一个。",
    "and %(n)s more": "等，另有 %(n)s 个",
    "Drop photographs here, or choose them": "把照片拖到这里，或点击选择",
    "or paste one; up to %(n)s MB each. They are sent to this service alone, and not kept.": (
        "也可以粘贴；每张不超过 %(n)s MB。照片只发送到本服务，不会保存。"
    ),
    "Decline to answer unless so many answers are right:": "只在回答的正确率能达到以下水平时作答：",
    "always answer": "总是作答",
    "Send": "发送",
    "Unlike the training images: the answer may mean nothing.": "与训练图像不同：答案可能没有意义。",
    "No answer:": "不作答：",
    "unlike the training images": "与训练图像不同",
    "unsure: %(came)s, and %(least)s is asked for": "没有把握：概率 %(came)s，要求至少 %(least)s",
    "none of the classes": "不属于任何类别",
    "Waiting for the answer …": "正在等待答案……",
    "The service cannot be reached. Is it still running?": "无法连接服务。它还在运行吗？",
    "The service does not answer this:": "服务拒绝了这个请求：",
    "Too large:": "太大：",
    "This cannot be read as an image:": "无法作为图像读取：",
    "It came too slowly:": "传输太慢：",
    "The service is busy; try again soon:": "服务繁忙，请稍后再试：",
    "Model": "模型",
    "licence of the pretrained weights": "预训练权重的许可证",
    "%(score)s on %(n)s test images: %(value)s (95 %% interval %(low)s to %(high)s).": (
        "%(n)s 张测试图像上的%(score)s：%(value)s（95 %% 区间 %(low)s 至 %(high)s）。"
    ),
    "For programs:": "供程序使用：",
}
